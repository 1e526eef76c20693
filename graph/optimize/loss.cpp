#include "graph/optimize/loss.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "graph/network/error.h"

namespace nibble {
namespace {

int largest(std::span<const float> values) {
  return static_cast<int>(std::max_element(values.begin(), values.end()) - values.begin());
}

// log(softmax(logits / temperature)) in double: a row has few classes, so accuracy costs nothing here.
void log_softmax(std::span<const float> logits, double temperature, std::span<double> result) {
  const double maximum = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    result[i] = (logits[i] - maximum) / temperature;
    sum += std::exp(result[i]);
  }
  const double log_sum = std::log(sum);
  for (double& value : result) value -= log_sum;
}

std::size_t count_images(std::size_t values, int classes, std::size_t expected, std::size_t gradients) {
  const std::size_t columns = static_cast<std::size_t>(classes);
  if (classes < 1 || values % columns != 0 || values / columns != expected ||
      (gradients != 0 && gradients != values)) {
    throw InputError("loss: logits, targets and gradient have different shapes (" + std::to_string(values) +
                     " logits, " + std::to_string(classes) + " classes, " + std::to_string(expected) +
                     " images, " + std::to_string(gradients) + " gradients)");
  }
  return expected;
}

}  // namespace

LossResult softmax_cross_entropy(std::span<const float> logits, std::span<const std::uint8_t> labels,
                                 int classes, Reduction reduction, double label_smoothing,
                                 std::span<float> gradient) {
  const std::size_t images = count_images(logits.size(), classes, labels.size(), gradient.size());
  const std::size_t columns = static_cast<std::size_t>(classes);
  const double scale = reduction == Reduction::mean ? 1.0 / static_cast<double>(images) : 1.0;
  const double everywhere = label_smoothing / classes;
  std::vector<double> log_probability(columns);
  LossResult result;
  for (std::size_t image = 0; image < images; ++image) {
    const std::span<const float> row = logits.subspan(image * columns, columns);
    const std::size_t label = labels[image];
    if (label >= columns) {
      throw InputError("loss: label " + std::to_string(label) + " of image " + std::to_string(image) +
                       " in the batch is not below " + std::to_string(classes));
    }
    log_softmax(row, 1.0, log_probability);
    result.correct += largest(row) == static_cast<int>(label);
    double loss = 0;
    for (std::size_t c = 0; c < columns; ++c) {
      const double target = everywhere + (c == label ? 1 - label_smoothing : 0);
      loss -= target * log_probability[c];
      if (!gradient.empty()) {
        gradient[image * columns + c] = static_cast<float>(scale * (std::exp(log_probability[c]) - target));
      }
    }
    result.loss += loss;
  }
  result.loss *= scale;
  return result;
}

LossResult distillation_loss(std::span<const float> student, std::span<const float> teacher, int classes,
                             Reduction reduction, double temperature, std::span<float> gradient) {
  const std::size_t columns = static_cast<std::size_t>(std::max(classes, 1));
  const std::size_t images = count_images(student.size(), classes, teacher.size() / columns, gradient.size());
  const double scale = reduction == Reduction::mean ? 1.0 / static_cast<double>(images) : 1.0;
  std::vector<double> log_student(columns);
  std::vector<double> log_teacher(columns);
  LossResult result;
  for (std::size_t image = 0; image < images; ++image) {
    const std::span<const float> student_row = student.subspan(image * columns, columns);
    const std::span<const float> teacher_row = teacher.subspan(image * columns, columns);
    log_softmax(student_row, temperature, log_student);
    log_softmax(teacher_row, temperature, log_teacher);
    result.correct += largest(student_row) == largest(teacher_row);
    double divergence = 0;
    for (std::size_t c = 0; c < columns; ++c) {
      const double probability = std::exp(log_teacher[c]);
      divergence += probability * (log_teacher[c] - log_student[c]);
      if (!gradient.empty()) {
        gradient[image * columns + c] =
            static_cast<float>(scale * temperature * (std::exp(log_student[c]) - probability));
      }
    }
    result.loss += divergence;
  }
  result.loss *= scale * temperature * temperature;
  return result;
}

}  // namespace nibble
