#include "train/evaluate.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "graph/data/loader.h"
#include "graph/onednn/float_network.h"
#include "graph/optimize/loss.h"

namespace nibble {

Evaluation evaluate(const NetworkDescription& network, const FloatParameters& parameters,
                    const Dataset& dataset, int batch_size, int num_workers, Precision precision) {
  const int largest_batch = std::max(1, std::min(batch_size, dataset.count()));
  FloatNetwork classifier(network, parameters, largest_batch, precision);
  std::vector<float> logits(static_cast<std::size_t>(largest_batch * network.classes));
  LoaderOptions options;
  options.batch_size = largest_batch;
  options.num_workers = num_workers;
  Loader loader(dataset, options);

  Evaluation result;
  const auto start = std::chrono::steady_clock::now();
  loader.start(0);
  while (const Batch* batch = loader.next()) {
    const std::span<float> part(logits.data(), static_cast<std::size_t>(batch->size * network.classes));
    classifier.run(batch->pixels, batch->size, part);
    const LossResult loss =
        softmax_cross_entropy(part, batch->labels, network.classes, Reduction::sum, 0, std::span<float>());
    result.correct += loss.correct;
    result.loss += loss.loss;
    result.images += batch->size;
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (result.images > 0) result.loss /= result.images;
  return result;
}

}  // namespace nibble
