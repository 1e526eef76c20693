#include "nibble/network.h"

#include <utility>

#include "graph/network/instruction_set.h"
#include "graph/network/integer_network.h"
#include "graph/network/quantized_parameters.h"

namespace nibble {

struct Network::Implementation {
  IntegerNetwork network;
};

Network::Network(std::unique_ptr<Implementation> implementation)
    : implementation_(std::move(implementation)) {}
Network::Network(Network&& other) noexcept = default;
Network& Network::operator=(Network&& other) noexcept = default;
Network::~Network() = default;

Network Network::load(const std::filesystem::path& file) {
  return Network(std::unique_ptr<Implementation>(
      new Implementation{IntegerNetwork(read_quantized(file), effective_instruction_set())}));
}

int Network::classes() const {
  return implementation_->network.description().classes;
}
int Network::image_height() const {
  return implementation_->network.description().image_size;
}
int Network::image_width() const {
  return implementation_->network.description().image_size;
}
int Network::image_channels() const {
  return implementation_->network.description().image_channels;
}

void Network::run(const std::uint8_t* pixels, std::int64_t count, float* logits) const {
  implementation_->network.run(pixels, count, logits);
}

std::string Network::description() const {
  return implementation_->network.text();
}

}  // namespace nibble
