#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>

#include "graph/network/description.h"
#include "graph/network/float_parameters.h"
#include "graph/network/quantized_parameters.h"
#include "graph/network/tensor_file.h"
#include "graph/onednn/learned_scales.h"

namespace nibble {

/// Where trained quantization starts: weights' step sizes of least squared error, activations' from what
/// `observer` ("auto": mse) sees of the FP32 network on `pixels_nhwc`.
LearnedScales initial_scales(const NetworkDescription& network, const FloatParameters& parameters,
                             std::span<const std::uint8_t> pixels_nhwc, int weight_bits, int activation_bits,
                             const std::string& observer);

/// The integer network that QuantizedTraining has come to. The integers are training's own; gamma / sigma
/// goes into the layers' scales and biases, a negative one into the integers' signs.
QuantizedParameters integer_parameters(const NetworkDescription& network, const FloatParameters& parameters,
                                       const LearnedScales& scales);

/// Where a trained quantization began: file, calibration images and observer, as its state keeps them and its
/// integer file gets them.
std::map<std::string, std::string> trained_provenance(const TensorFile& file);

/// Whether a file is the P of a trained quantization.
bool is_trained(const TensorFile& file);

/// From such a P to an integer network that names it.
QuantizedNetwork export_trained(const TensorFile& file);

/// P_int2, P_int2a8 ...: where the integer network of a checkpoint path goes.
std::filesystem::path integer_file(const std::string& checkpoint_path, int weight_bits, int activation_bits);

}  // namespace nibble
