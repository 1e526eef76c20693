#pragma once

#include <cstdint>

#include "graph/data/cifar10.h"
#include "graph/network/description.h"
#include "graph/network/float_parameters.h"
#include "graph/network/quantized_parameters.h"
#include "graph/onednn/precision.h"

namespace nibble {

struct Evaluation {
  int correct = 0;
  int images = 0;
  double loss = 0;     ///< mean cross entropy
  double seconds = 0;  ///< loader and network, without building the network

  double top1() const { return images == 0 ? 0 : static_cast<double>(correct) / images; }
};

/// Runs all images of a labelled data set through the network in inference form (batch normalization folded).
Evaluation evaluate(const NetworkDescription& network, const FloatParameters& parameters,
                    const Dataset& dataset, int batch_size, int num_workers, Precision precision);

/// The same of a quantized network, run as the file of it will be: in integers.
Evaluation evaluate_integers(const QuantizedNetwork& quantized, const Dataset& dataset, int batch_size,
                             int num_workers);

}  // namespace nibble
