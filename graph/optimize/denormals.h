#pragma once

namespace nibble {

/// Makes subnormal numbers zero (MXCSR's FTZ and DAZ bits) in the calling thread and in all of its OpenMP
/// workers. Gradients and moments that fade away would otherwise slow a step many times over.
void flush_denormals();

}  // namespace nibble
