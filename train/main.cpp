#include "cfg/program.h"
#include "train/program.h"

// training.h       the loop: loader -> learner -> log, checkpoints
// learner.h        one step: forward, losses, backward, optimizer, weight average
// augmentation.h   what happens to an image; mixup.h: to a batch
// checkpoint.h     position, lock and names of P's files
// evaluate.h       top-1 on a data set
// initialize.h     the parameters to begin with
// progress.h, log.h   the line on the terminal, the lines in P.log.jsonl
int main(int argc, char** argv) {
  nibble::TrainOptions options;
  return nibble::run_program(
      argc, argv, "train", "Trains a network on CIFAR-10, or evaluates a checkpoint (-e).",
      [&](CLI::App& app) { nibble::add_train_options(app, options); },
      [&] { return nibble::train_program(options); });
}
