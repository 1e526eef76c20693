#pragma once

#include <cstdint>
#include <span>

namespace nibble {

/// How the images' losses become one number, and with it the scale of the gradient.
enum class Reduction { sum, mean };

struct LossResult {
  double loss = 0;  ///< reduced over the images
  int correct = 0;  ///< images whose largest logit (the lowest index where several are equal) is the label's
};

/// Cross entropy of softmax(logits) with the labels, as torch.nn.functional.cross_entropy:
/// the target is 1 - label_smoothing at the label plus label_smoothing / classes everywhere
/// (Szegedy et al. 2015, arXiv:1512.00567, section 7).
/// `logits` and `gradient` (of the loss with respect to the logits; may be empty) are [images][classes].
/// Throws InputError for a label outside of 0..classes-1.
LossResult softmax_cross_entropy(std::span<const float> logits, std::span<const std::uint8_t> labels,
                                 int classes, Reduction reduction, double label_smoothing,
                                 std::span<float> gradient);

/// temperature^2 * KL(softmax(teacher / temperature) || softmax(student / temperature)), reduced over the
/// images (Hinton et al. 2015, arXiv:1503.02531). `gradient` is with respect to `student` and may be empty.
/// All are [images][classes]. `correct` counts the images where both have the same class.
LossResult distillation_loss(std::span<const float> student, std::span<const float> teacher, int classes,
                             Reduction reduction, double temperature, std::span<float> gradient);

}  // namespace nibble
