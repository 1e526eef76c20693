// Trains on generated images, so that what a training does with its files and with signals can be tested
// without the data set: train_generated --cfg FILE --checkpoint-path P [--images N] [--no-resume]. Exit codes
// as `train`.

#include <string>

#include "cfg/program.h"
#include "graph/data/cifar10.h"
#include "tests/train/generated_data.h"
#include "train/program.h"

int main(int argc, char** argv) {
  std::string configuration_file;
  std::string checkpoint_path;
  int images = 64;
  bool no_resume = false;
  return nibble::run_program(
      argc, argv, "train_generated", "Trains on generated images.",
      [&](CLI::App& app) {
        app.add_option("--cfg", configuration_file)->required();
        app.add_option("--checkpoint-path", checkpoint_path)->required();
        app.add_option("--images", images);
        app.add_flag("--no-resume", no_resume);
      },
      [&] {
        nibble::Configuration configuration = nibble::load_configuration(configuration_file);
        configuration.cfg.checkpoint_path = checkpoint_path;
        const nibble::Dataset training = nibble::labelled_images(images);
        const nibble::Dataset test = nibble::labelled_images(16);
        nibble::TrainingFiles files(configuration, !no_resume);
        return nibble::run_training(configuration, {.training = &training, .test = &test}, files);
      });
}
