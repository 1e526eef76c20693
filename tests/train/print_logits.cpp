// print_logits FILE COUNT: the float network's logits of the first COUNT generated images, one image a line,
// for tests/scripts/from_pytorch_test.py.

#include <fmt/format.h>

#include <string>
#include <vector>

#include "cfg/program.h"
#include "graph/data/cifar10.h"
#include "graph/network/float_parameters.h"
#include "graph/onednn/float_network.h"

int main(int argc, char** argv) {
  std::string file;
  int count = 16;
  return nibble::run_program(
      argc, argv, "print_logits", "Prints the logits of generated images.",
      [&](CLI::App& app) {
        app.add_option("FILE", file)->required();
        app.add_option("COUNT", count)->check(CLI::Range(1, 10000));
      },
      [&] {
        const nibble::TensorFile checkpoint = nibble::read_tensor_file(file);
        const nibble::NetworkDescription network = nibble::stored_network(checkpoint);
        nibble::FloatNetwork classifier(network, nibble::stored_parameters(network, checkpoint), count);
        const nibble::Dataset images = nibble::generated_images(count);
        std::vector<float> logits(static_cast<std::size_t>(count * network.classes));
        classifier.run(images.pixels, count, logits);
        for (std::size_t i = 0; i < logits.size(); ++i) {
          fmt::print("{:.9g}{}", logits[i],
                     (i + 1) % static_cast<std::size_t>(network.classes) == 0 ? '\n' : ' ');
        }
        return 0;
      });
}
