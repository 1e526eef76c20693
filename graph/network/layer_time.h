#pragma once

#include <string>

namespace nibble {

/// What one layer took in a network's profile().
struct LayerTime {
  /// A convolution's name, "normalize", "images into lanes", "padded shortcuts", "pool and linear".
  std::string name;
  double seconds;               ///< all images of the call, fastest of the repetitions
  double multiply_accumulates;  ///< all images of the call, valid taps only; 0 for element-wise work
};

}  // namespace nibble
