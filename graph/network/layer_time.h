#pragma once

#include <string>

namespace nibble {

/// What one layer took in a network's profile().
struct LayerTime {
  std::string name;             ///< "normalize", a convolution's name, "pool and linear", "padded shortcuts"
  double seconds;               ///< all images of the call, fastest of the repetitions
  double multiply_accumulates;  ///< all images of the call, valid taps only; 0 for element-wise work
};

}  // namespace nibble
