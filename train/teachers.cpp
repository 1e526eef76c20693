#include "train/teachers.h"

#include <algorithm>
#include <cstdlib>

#include "graph/data/sha256.h"
#include "graph/network/description.h"
#include "graph/network/tensor_file.h"

namespace nibble {

int held_out_by(const TensorFile& file) {
  return std::atoi(file.entry("validation").c_str());
}

Teachers::Teachers(const std::vector<std::string>& files, int max_batch, Precision precision) {
  for (const std::string& name : files) {
    const TensorFile file = read_tensor_file(name);
    sha256_ += (sha256_.empty() ? "" : " ") + sha256_of_file(name);
    held_out_ = std::min(held_out_, held_out_by(file));
    const NetworkDescription network = stored_network(file);
    networks_.emplace_back(network, stored_parameters(network, file), max_batch, precision);
  }
}

void Teachers::run(std::span<const std::uint8_t> pixels_nhwc, int count, std::span<float> logits) {
  networks_.front().run(pixels_nhwc, count, logits);
  if (networks_.size() == 1) return;
  logits_.resize(logits.size());
  for (std::size_t i = 1; i < networks_.size(); ++i) {
    networks_[i].run(pixels_nhwc, count, logits_);
    for (std::size_t j = 0; j < logits.size(); ++j) logits[j] += logits_[j];
  }
  const float share = 1.0F / static_cast<float>(networks_.size());
  for (float& logit : logits) logit *= share;
}

}  // namespace nibble
