#include "bench/network_comparison.h"

#include <chrono>

#include "bench/statistics.h"

namespace nibble {
namespace {

/// About this many images a piece: long enough for the clock and for threads to start, short enough that both
/// sides meet the same disturbances.
constexpr int kImagesAPiece = 128;

double seconds_an_image(const std::function<void()>& run_batch, int batch) {
  const int repetitions = (kImagesAPiece + batch - 1) / batch;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < repetitions; ++i) run_batch();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return elapsed.count() / (static_cast<double>(repetitions) * batch);
}

struct Bare {
  BareKind kind;
  int batch;
  BareConvolutions convolutions;
  std::vector<double> seconds;
};

}  // namespace

NetworkComparison compare_with_bare(const NetworkDescription& network, int batch,
                                    const std::vector<BareKind>& kinds,
                                    const std::function<void()>& run_batch, int rounds) {
  std::vector<Bare> bares;
  for (const BareKind kind : kinds) {
    for (const int bare_batch : batch == 1 ? std::vector{1} : std::vector{16, 64, 256, 1024}) {
      bares.push_back({kind, bare_batch, BareConvolutions(network, kind, bare_batch), {}});
    }
  }
  std::vector<double> seconds;
  for (int round = -1; round < rounds; ++round) {  // round -1 warms up
    const double of_network = seconds_an_image(run_batch, batch);
    if (round >= 0) seconds.push_back(of_network);
    for (Bare& bare : bares) {
      const double of_bare = seconds_an_image([&] { bare.convolutions.run(); }, bare.batch);
      if (round >= 0) bare.seconds.push_back(of_bare);
    }
  }
  NetworkComparison comparison{1 / median(seconds), 0, 0, kinds.front()};
  for (const Bare& bare : bares) {
    const double rate = 1 / median(bare.seconds);
    if (rate <= comparison.bare_images_per_second) continue;
    comparison.bare_images_per_second = rate;
    comparison.bare_batch = bare.batch;
    comparison.bare_kind = bare.kind;
  }
  return comparison;
}

}  // namespace nibble
