#include "quant/layer_by_layer.h"

namespace nibble {

/// Nearest rounding with the correction of the options.
QuantizedParameters quantize_nearest(const QuantizationTask& task) {
  return quantize_layer_by_layer(task, {});
}

}  // namespace nibble
