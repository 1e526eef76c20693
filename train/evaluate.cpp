#include "train/evaluate.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "graph/data/loader.h"
#include "graph/network/instruction_set.h"
#include "graph/network/integer_network.h"
#include "graph/onednn/float_network.h"
#include "graph/optimize/loss.h"

namespace nibble {

namespace {

/// classify(batch, its logits) for all batches.
template <typename Classify>
Evaluation evaluate_with(const Classify& classify, const NetworkDescription& network, const Dataset& dataset,
                         int batch_size, int num_workers) {
  std::vector<float> logits(static_cast<std::size_t>(batch_size * network.classes));
  LoaderOptions options;
  options.batch_size = batch_size;
  options.num_workers = num_workers;
  Loader loader(dataset, options);

  Evaluation result;
  const auto start = std::chrono::steady_clock::now();
  loader.start(0);
  while (const Batch* batch = loader.next()) {
    const std::span<float> part(logits.data(), static_cast<std::size_t>(batch->size * network.classes));
    classify(*batch, part);
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

int largest_batch(const Dataset& dataset, int batch_size) {
  return std::max(1, std::min(batch_size, dataset.count()));
}

}  // namespace

Evaluation evaluate(const NetworkDescription& network, const FloatParameters& parameters,
                    const Dataset& dataset, int batch_size, int num_workers, Precision precision) {
  const int largest = largest_batch(dataset, batch_size);
  FloatNetwork classifier(network, parameters, largest, precision);
  return evaluate_with(
      [&](const Batch& batch, std::span<float> logits) { classifier.run(batch.pixels, batch.size, logits); },
      network, dataset, largest, num_workers);
}

Evaluation evaluate_integers(const QuantizedNetwork& quantized, const Dataset& dataset, int batch_size,
                             int num_workers) {
  IntegerNetwork classifier(quantized, effective_instruction_set());
  return evaluate_with(
      [&](const Batch& batch, std::span<float> logits) {
        classifier.run(batch.pixels.data(), batch.size, logits.data());
      },
      quantized.network, dataset, largest_batch(dataset, batch_size), num_workers);
}

}  // namespace nibble
