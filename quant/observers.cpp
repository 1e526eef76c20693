#include <cmath>
#include <limits>

#include "graph/network/error.h"
#include "quant/observer.h"

namespace nibble {
namespace {

constexpr Observer kObservers[] = {
    {"minmax", minmax_bound},
    {"histogram", histogram_bound},
    {"percentile", percentile_bound},
    {"mse", mse_bound},
};

}  // namespace

std::span<const Observer> observers() {
  return kObservers;
}

const Observer& find_observer(const std::string& name) {
  std::string names;
  for (const Observer& observer : kObservers) {
    if (observer.name == name) return observer;
    names += (names.empty() ? "" : ", ") + std::string(observer.name);
  }
  throw InputError("there is no observer '" + name + "'; choose one of " + names);
}

float choose_scale(const Observer& observer, const ValueHistogram& seen, int highest) {
  if (!(seen.largest() > 0)) return 1;
  const auto scale = static_cast<float>(observer.choose_bound(seen, highest) / highest);
  return std::fmax(scale, std::numeric_limits<float>::min());
}

}  // namespace nibble
