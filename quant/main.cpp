#include "cfg/program.h"
#include "quant/program.h"

// program.h                 options, files, what is printed
// quantize.h                fold, calibrate, quantize; how good the result is
//   calibration.h           which images, what the FP32 network does on them (float_pass.h)
//   observer.h              ranges of activations: observer_*.cpp, listed in observers.cpp
//   weight_quantization.h   integers and scales of one layer
//   method.h                rounding methods: method_*.cpp, listed in methods.cpp
//   learned_methods.h       the stages of methods that learn by gradients, on learned_network.h
//   simulation.h            the integer network with every tensor laid open
// quantize_unfused.h        the unfused 8-bit network
int main(int argc, char** argv) {
  nibble::QuantOptions options;
  return nibble::run_program(
      argc, argv, "quant", "Quantizes a trained checkpoint to 16, 8, 4 or 2 bits with calibration images.",
      [&](CLI::App& app) { nibble::add_quant_options(app, options); },
      [&] { return nibble::quant_program(options); });
}
