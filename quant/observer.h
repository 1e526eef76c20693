#pragma once

#include <memory>
#include <span>
#include <string>

#include "quant/value_histogram.h"

namespace nibble {

/// Chooses the clipping range of an activation from what was seen of it: values up to the returned bound
/// (> 0) are represented, larger ones are clipped to it. `highest` is the largest integer, so that the
/// scale is bound / highest; signed tensors are seen by their magnitudes. Only called after at least one
/// value other than zero was seen.
using ChooseBound = double (*)(const ValueHistogram& seen, int highest);

/// A new observer is one file and one line in observers.cpp.
struct Observer {
  const char* name;  ///< of --observer
  ChooseBound choose_bound;
};

double minmax_bound(const ValueHistogram& seen, int highest);
double histogram_bound(const ValueHistogram& seen, int highest);
double percentile_bound(const ValueHistogram& seen, int highest);
double mse_bound(const ValueHistogram& seen, int highest);

std::span<const Observer> observers();

/// Throws InputError that lists the names.
const Observer& find_observer(const std::string& name);

/// The scale of a tensor; 1 for one that was always zero (a dead layer): any scale represents it.
float choose_scale(const Observer& observer, const ValueHistogram& seen, int highest);

}  // namespace nibble
