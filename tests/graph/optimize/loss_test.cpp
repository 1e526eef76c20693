#include "graph/optimize/loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "graph/network/error.h"
#include "tests/graph/optimize/golden.h"

namespace nibble {
namespace {

constexpr int kClasses = 10;

Reduction reduction_of(const nlohmann::json& row) {
  return row.at("reduction") == "mean" ? Reduction::mean : Reduction::sum;
}

// The losses are computed in double on both sides; the gradient is rounded to float32 once.
void expect_equal(const LossResult& result, const std::vector<float>& gradient, const nlohmann::json& row) {
  const double loss = row.at("loss").get<double>();
  EXPECT_NEAR(result.loss, loss, 1e-12 * std::abs(loss)) << row.at("kind");
  const std::vector<double> expected = row.at("gradient").get<std::vector<double>>();
  ASSERT_EQ(gradient.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(gradient[i], expected[i], 1e-7 * std::abs(expected[i]) + 1e-15) << row.at("kind") << " " << i;
  }
}

TEST(Loss, EqualsPyTorch) {
  const nlohmann::json& losses = golden().at("losses");
  const std::vector<float> logits = losses.at("logits").get<std::vector<float>>();
  const std::vector<float> teacher = losses.at("teacher").get<std::vector<float>>();
  const std::vector<std::uint8_t> labels = losses.at("labels").get<std::vector<std::uint8_t>>();
  int compared = 0;
  for (const nlohmann::json& row : losses.at("rows")) {
    std::vector<float> gradient(logits.size());
    const LossResult result = row.at("kind") == "cross_entropy"
                                  ? softmax_cross_entropy(logits, labels, kClasses, reduction_of(row),
                                                          row.at("label_smoothing").get<double>(), gradient)
                                  : distillation_loss(logits, teacher, kClasses, reduction_of(row),
                                                      row.at("temperature").get<double>(), gradient);
    expect_equal(result, gradient, row);
    ++compared;
  }
  EXPECT_EQ(compared, 8);
}

TEST(Loss, CountsTheLowestOfEqualLogits) {
  const std::vector<float> logits = {1, 3, 3, 0,  //
                                     5, 5, 5, 5,  //
                                     0, 0, 0, 1};
  const std::vector<std::uint8_t> labels = {2, 0, 3};
  const LossResult result = softmax_cross_entropy(logits, labels, 4, Reduction::sum, 0, {});
  EXPECT_EQ(result.correct, 2);
}

TEST(Loss, StaysFiniteForHugeLogits) {
  const std::vector<float> logits = {3e38F, -3e38F, 0, 0};
  const std::vector<std::uint8_t> labels = {0};
  std::vector<float> gradient(4);
  const LossResult result = softmax_cross_entropy(logits, labels, 4, Reduction::sum, 0, gradient);
  EXPECT_EQ(result.loss, 0);
  for (const float value : gradient) EXPECT_EQ(value, 0);
}

TEST(Loss, RefusesALabelThatIsNoClass) {
  const std::vector<float> logits(20);
  const std::vector<std::uint8_t> labels = {9, 10};
  try {
    softmax_cross_entropy(logits, labels, kClasses, Reduction::sum, 0, {});
    FAIL() << "label 10 was accepted";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("label 10 of image 1"), std::string::npos) << error.what();
  }
}

TEST(Loss, RefusesShapesThatDoNotFit) {
  const std::vector<float> logits(20);
  const std::vector<std::uint8_t> labels(3);
  EXPECT_THROW(softmax_cross_entropy(logits, labels, kClasses, Reduction::sum, 0, {}), InputError);
  EXPECT_THROW(distillation_loss(logits, std::span(logits).first(10), kClasses, Reduction::sum, 1, {}),
               InputError);
}

}  // namespace
}  // namespace nibble
