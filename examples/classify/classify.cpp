// classify FILE image.png: the three likeliest classes of an image, by a quantized network.
#include <png.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "nibble/network.h"

namespace {

constexpr std::array kClassNames = {"airplane", "automobile", "bird",  "cat",  "deer",
                                    "dog",      "frog",       "horse", "ship", "truck"};

// The image as [row][column][red, green, blue]. Other colour types than RGB are converted, transparency is
// refused: the network has never seen a background.
std::vector<std::uint8_t> read_png(const char* path, const nibble::Network& network) {
  png_image image = {};
  image.version = PNG_IMAGE_VERSION;
  if (png_image_begin_read_from_file(&image, path) == 0) {
    throw std::runtime_error(std::string(path) + ": cannot be read as PNG: " + image.message);
  }
  const auto width = static_cast<png_uint_32>(network.image_width());
  const auto height = static_cast<png_uint_32>(network.image_height());
  const auto size = [](png_uint_32 columns, png_uint_32 rows) {
    return std::to_string(columns) + "x" + std::to_string(rows);
  };
  const bool right_size = image.width == width && image.height == height;
  const bool transparent = (image.format & PNG_FORMAT_FLAG_ALPHA) != 0;
  if (!right_size || transparent) {
    png_image_free(&image);
    throw std::runtime_error(std::string(path) +
                             (right_size ? ": has transparent pixels; give an opaque image"
                                         : ": is " + size(image.width, image.height) +
                                               " pixels; give an image of " + size(width, height)));
  }
  image.format = PNG_FORMAT_RGB;
  std::vector<std::uint8_t> pixels(PNG_IMAGE_SIZE(image));
  if (png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr) == 0) {
    throw std::runtime_error(std::string(path) + ": cannot be read as PNG: " + image.message);
  }
  return pixels;
}

void print_likeliest(const std::vector<float>& logits) {
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  float sum = 0;
  for (const float logit : logits) sum += std::exp(logit - logits[order[0]]);
  for (std::size_t rank = 0; rank < std::min<std::size_t>(3, order.size()); ++rank) {
    const std::size_t label = order[rank];
    std::printf("%-10s %5.1f %%\n", kClassNames.at(label),
                static_cast<double>(100 * std::exp(logits[label] - logits[order[0]]) / sum));
  }
}

// All classes in their order, with the digits that give the same float back.
void print_logits(const std::vector<float>& logits) {
  for (std::size_t label = 0; label < logits.size(); ++label) {
    std::printf("%-10s %.9g\n", kClassNames.at(label), static_cast<double>(logits[label]));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--help") == 0) {
    std::puts(
        "Usage: classify FILE image.png [--logits]\n"
        "FILE: a quantized checkpoint (*.safetensors); image.png: 32x32 pixels, opaque\n"
        "--logits: the network's output for each class instead of the likeliest classes");
    return 0;
  }
  const bool wants_logits = argc == 4 && std::strcmp(argv[3], "--logits") == 0;
  if (argc != 3 && !wants_logits) {
    std::fputs("Usage: classify FILE image.png [--logits]\n", stderr);
    return 2;
  }
  try {
    const nibble::Network network = nibble::Network::load(argv[1]);
    const std::vector<std::uint8_t> pixels = read_png(argv[2], network);
    std::vector<float> logits(static_cast<std::size_t>(network.classes()));
    network.run(pixels.data(), 1, logits.data());
    wants_logits ? print_logits(logits) : print_likeliest(logits);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "classify: %s\n", error.what());
    return 2;
  }
  return 0;
}
