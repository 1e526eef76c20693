#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#define NIBBLE_API __attribute__((visibility("default")))

namespace nibble {

/// A quantized network, ready to run. Integer arithmetic: the logits are the same bit for bit on every CPU,
/// with any batch and any number of threads.
///
///   const nibble::Network network = nibble::Network::load("64_200_int2.safetensors");
///   std::vector<float> logits(count * network.classes());
///   network.run(pixels, count, logits.data());
///
/// Threads: OpenMP's, as many as omp_get_max_threads() says when the network is loaded. The environment
/// variable NIBBLE_MAX_ISA (reference, avx2, avx512_vnni, avx512_vbmi, avx512_amx) keeps it from newer
/// instructions.
class NIBBLE_API Network {
 public:
  /// Reads a quantized checkpoint of 16, 8, 4 or 2 bits. Throws std::runtime_error: one sentence that names
  /// the file, what is wrong with it and what to do.
  static Network load(const std::filesystem::path& file);

  Network(Network&& other) noexcept;
  Network& operator=(Network&& other) noexcept;
  ~Network();

  int classes() const;
  int image_height() const;
  int image_width() const;
  int image_channels() const;

  /// pixels: count images, [row][column][red, green, blue], 0..255, not normalized. logits: count times
  /// [class], float32. Allocates nothing. Calls from several threads take turns.
  void run(const std::uint8_t* pixels, std::int64_t count, float* logits) const;

  /// For people: the network, its widths, and the kernel that runs each layer.
  std::string description() const;

 private:
  struct Implementation;
  explicit Network(std::unique_ptr<Implementation> implementation);
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace nibble
