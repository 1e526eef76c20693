#include "kernels/run_packing.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "kernels/requantize.h"

namespace nibble {
namespace {

constexpr int kPaddedChannels = 4;

struct Extremes {
  std::int64_t lowest = 0;
  std::int64_t highest = 0;
};

struct Step {
  int group = 0;
  std::vector<std::int16_t> weights;  // [output channel of the block][channel of the group]
  std::vector<Extremes> lanes;        // [output channel of the block][narrow lane of the group]
};

class Packer {
 public:
  Packer(const ConvolutionLayer& layer, int block_channels, const NarrowLane& lane)
      : layer_(layer),
        block_channels_(block_channels),
        lane_(lane),
        taps_(layer.shape.kernel * layer.shape.kernel),
        groups_((layer.shape.input_channels + lane.group_channels - 1) / lane.group_channels) {}

  /// The steps of every (block, tap), or of every block, largest first.
  std::vector<std::vector<Step>> all_steps(TapRuns taps) const {
    const int padded =
        (layer_.shape.output_channels + kPaddedChannels - 1) / kPaddedChannels * kPaddedChannels;
    std::vector<std::vector<Step>> all;
    for (int first = 0; first < padded; first += block_channels_) {
      std::vector<Step> steps;
      for (int tap = 0; tap < taps_; ++tap) {
        const std::size_t begin = steps.size();
        for (int group = 0; group < groups_; ++group) add_steps(first, tap, group, steps);
        if (taps == TapRuns::joined) {
          for (std::size_t i = begin; i < steps.size(); ++i) steps[i].group += tap * groups_;
          if (tap + 1 < taps_) continue;
        }
        std::stable_sort(steps.begin(), steps.end(),
                         [](const Step& a, const Step& b) { return largest(a) > largest(b); });
        all.push_back(std::exchange(steps, {}));
      }
    }
    return all;
  }

  /// First fit: each step goes into the first run with a place left that it cannot make overflow.
  std::vector<std::vector<const Step*>> runs_of(const std::vector<Step>& steps, int length) const {
    struct Open {
      std::vector<const Step*> steps;
      std::vector<Extremes> lanes;
    };
    std::vector<Open> open;
    for (const Step& step : steps) {
      const auto place = std::find_if(open.begin(), open.end(), [&](const Open& run) {
        return static_cast<int>(run.steps.size()) < length && fits(run.lanes, step.lanes);
      });
      Open& run = place == open.end() ? open.emplace_back(Open{{}, std::vector<Extremes>(step.lanes.size())})
                                      : *place;
      run.steps.push_back(&step);
      add(run.lanes, step.lanes);
    }
    std::vector<std::vector<const Step*>> runs;
    for (Open& run : open) runs.push_back(std::move(run.steps));
    return runs;
  }

 private:
  static std::int64_t largest(const Step& step) {
    std::int64_t value = 0;
    for (const Extremes& lane : step.lanes) value = std::max({value, -lane.lowest, lane.highest});
    return value;
  }
  static void add(std::vector<Extremes>& to, const std::vector<Extremes>& lanes) {
    for (std::size_t i = 0; i < lanes.size(); ++i) {
      to[i].lowest += lanes[i].lowest;
      to[i].highest += lanes[i].highest;
    }
  }
  bool fits(const std::vector<Extremes>& a, const std::vector<Extremes>& b) const {
    for (std::size_t i = 0; i < b.size(); ++i) {
      if (a[i].lowest + b[i].lowest < lane_.lowest || a[i].highest + b[i].highest > lane_.highest)
        return false;
    }
    return true;
  }

  std::int16_t weight(int output_channel, int tap, int channel) const {
    const ConvolutionShape& shape = layer_.shape;
    if (output_channel >= shape.output_channels || channel >= shape.input_channels) return 0;
    return layer_.weights[static_cast<std::size_t>(output_channel) * shape.filter_size() +
                          static_cast<std::size_t>(tap * shape.input_channels + channel)];
  }

  /// The step of a group with the channels for which place % parts == part.
  Step make_step(int first_channel, int tap, int group, int part, int parts) const {
    Step step{group, {}, {}};
    const int limit = activation_limit(layer_.activation_bits);
    for (int o = first_channel; o < first_channel + block_channels_; ++o) {
      for (int place = 0; place < lane_.group_channels; ++place) {
        const bool taken = place % parts == part;
        const std::int16_t value =
            taken ? weight(o, tap, group * lane_.group_channels + place) : std::int16_t{0};
        step.weights.push_back(value);
        if (place % lane_.lane_channels == 0) step.lanes.emplace_back();
        Extremes& extremes = step.lanes.back();
        (value < 0 ? extremes.lowest : extremes.highest) += std::int64_t{value} * limit;
      }
    }
    return step;
  }

  void add_steps(int first_channel, int tap, int group, std::vector<Step>& steps) const {
    const auto add_unless_zero = [&](Step step) {
      const bool zero =
          std::all_of(step.weights.begin(), step.weights.end(), [](std::int16_t w) { return w == 0; });
      if (!zero) steps.push_back(std::move(step));
    };
    Step whole = make_step(first_channel, tap, group, 0, 1);
    const std::vector<Extremes> nothing(whole.lanes.size());
    if (fits(nothing, whole.lanes)) {
      add_unless_zero(std::move(whole));
      return;
    }
    for (int part = 0; part < lane_.lane_channels; ++part) {
      add_unless_zero(make_step(first_channel, tap, group, part, lane_.lane_channels));
    }
  }

  const ConvolutionLayer& layer_;
  int block_channels_;
  NarrowLane lane_;
  int taps_;
  int groups_;
};

}  // namespace

RunProgram::RunProgram() = default;
RunProgram::RunProgram(RunProgram&& other) noexcept = default;
RunProgram& RunProgram::operator=(RunProgram&& other) noexcept = default;
RunProgram::~RunProgram() = default;

RunProgram pack_runs(const ConvolutionLayer& layer, int block_channels, const NarrowLane& lane,
                     std::span<const RunLength> lengths, TapRuns taps) {
  const Packer packer(layer, block_channels, lane);
  const std::vector<std::vector<Step>> all = packer.all_steps(taps);
  RunProgram best;
  double best_cost = 0;
  for (const RunLength& candidate : lengths) {
    RunProgram program;
    program.length = candidate.length;
    std::int32_t run_count = 0;
    for (const std::vector<Step>& steps : all) {
      program.first_run.push_back(run_count);
      for (const std::vector<const Step*>& run : packer.runs_of(steps, candidate.length)) {
        ++run_count;
        for (std::size_t i = 0; i < static_cast<std::size_t>(candidate.length); ++i) {
          program.groups.push_back(i < run.size() ? run[i]->group : 0);
          if (i < run.size()) {
            program.weights.insert(program.weights.end(), run[i]->weights.begin(), run[i]->weights.end());
          } else {
            program.weights.resize(program.weights.size() +
                                   static_cast<std::size_t>(block_channels * lane.group_channels));
          }
        }
      }
    }
    program.first_run.push_back(run_count);
    const double cost = run_count * candidate.cost;
    if (best.length == 0 || cost < best_cost) {
      best = std::move(program);
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace nibble
