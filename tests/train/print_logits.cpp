// print_logits FILE COUNT [--test-images]: logits of the first COUNT generated or test images, one image a
// line, with all digits. FILE is a float or a quantized checkpoint; all images are one batch.

#include <fmt/format.h>

#include <string>
#include <vector>

#include "cfg/program.h"
#include "graph/data/cifar10.h"
#include "graph/data/download.h"
#include "graph/network/float_parameters.h"
#include "graph/network/instruction_set.h"
#include "graph/network/integer_network.h"
#include "graph/onednn/float_network.h"

namespace nibble {
namespace {

std::vector<float> logits_of(const std::string& file, const Dataset& images) {
  const int count = images.count();
  const TensorFile checkpoint = read_tensor_file(file);
  if (checkpoint.entry("format") == kIntegerFormat) {
    const QuantizedNetwork quantized = read_quantized(file);
    const IntegerNetwork network(quantized, effective_instruction_set());
    std::vector<float> logits(static_cast<std::size_t>(count * quantized.network.classes));
    network.run(images.pixels.data(), count, logits.data());
    return logits;
  }
  const NetworkDescription description = stored_network(checkpoint);
  FloatNetwork network(description, stored_parameters(description, checkpoint), count);
  std::vector<float> logits(static_cast<std::size_t>(count * description.classes));
  network.run(images.pixels, count, logits);
  return logits;
}

int print(const std::string& file, int count, bool of_test_images) {
  Dataset images = generated_images(count);
  if (of_test_images) {
    images = read_cifar10(prepare_cifar10("none", false, {}), Split::test);
    images.pixels.resize(static_cast<std::size_t>(count) * cifar10_image_bytes);
  }
  const std::vector<float> logits = logits_of(file, images);
  const std::size_t classes = logits.size() / static_cast<std::size_t>(count);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    fmt::print("{:.9g}{}", logits[i], (i + 1) % classes == 0 ? '\n' : ' ');
  }
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  std::string file;
  int count = 16;
  bool of_test_images = false;
  return nibble::run_program(
      argc, argv, "print_logits", "Prints the logits of generated images.",
      [&](CLI::App& app) {
        app.add_option("FILE", file)->required();
        app.add_option("COUNT", count)->check(CLI::Range(1, 10000));
        app.add_flag("--test-images", of_test_images, "of the data set in CIFAR10_ROOT");
      },
      [&] { return nibble::print(file, count, of_test_images); });
}
