// The definition of the loops in elementwise.h, included by one file for each instruction set behind its
// elementwise_lanes8.h or elementwise_lanes16.h, whose rules hold here too.
#pragma once

#include <cstddef>

#include "graph/onednn/elementwise.h"

namespace nibble {
namespace {

/// Registers of channels that one pass over the rows takes: 2 sums of 4 registers stay.
constexpr int kBlock = 4;
/// Rows summed in FP32 before the sum goes to a double.
constexpr std::size_t kRun = 64;

inline __attribute__((always_inline)) Lanes relu(const Lanes& value) {
  return larger(value, Lanes{});
}

inline __attribute__((always_inline)) void add_to(const Lanes& value, double* sum) {
  for (int i = 0; i < kLanes; ++i) sum[i] += static_cast<double>(value[i]);
}

/// Arrays of [channels] that are the same in every row.
template <int count>
struct PerChannel {
  static constexpr int size = count == 0 ? 1 : count;
  const float* of[size];
};

/// Their values for `block` registers of channels from `first` on.
template <int count, int block>
struct Constants {
  Constants(const PerChannel<count>& arrays, std::size_t first) {
    for (int i = 0; i < block; ++i) {
      for (int k = 0; k < count; ++k) at[i][k] = load(arrays.of[k] + first + i * kLanes);
    }
  }
  Lanes at[block][PerChannel<count>::size];
};

/// body(offset of the value, its channels' constants) for every register of `block` of them, row by row.
template <int constants, int block, typename Body>
inline __attribute__((always_inline)) void each_block(std::size_t rows, std::size_t stride, std::size_t first,
                                                      const PerChannel<constants>& of, const Body& body) {
  const Constants<constants, block> constant(of, first);
  for (std::size_t row = 0; row < rows; ++row) {
#pragma GCC unroll 4
    for (int i = 0; i < block; ++i) {
      body(row * stride + first + static_cast<std::size_t>(i) * kLanes, constant.at[i]);
    }
  }
}

/// The sums of `terms` values that body(offset, constants, terms) gives, added to sums[term][channel]. Rows
/// go in runs of kRun.
template <int constants, int terms, int block, typename Body>
inline __attribute__((always_inline)) void sum_block(std::size_t rows, std::size_t stride, std::size_t first,
                                                     const PerChannel<constants>& of, double* const* sums,
                                                     const Body& body) {
  const Constants<constants, block> constant(of, first);
  for (std::size_t run = 0; run < rows; run += kRun) {
    const std::size_t end = run + kRun < rows ? run + kRun : rows;
    Lanes partial[terms][block] = {};
    for (std::size_t row = run; row < end; ++row) {
#pragma GCC unroll 4
      for (int i = 0; i < block; ++i) {
        Lanes values[terms];
        body(row * stride + first + static_cast<std::size_t>(i) * kLanes, constant.at[i], values);
        for (int term = 0; term < terms; ++term) partial[term][i] += values[term];
      }
    }
    for (int term = 0; term < terms; ++term) {
      for (int i = 0; i < block; ++i) add_to(partial[term][i], sums[term] + first + i * kLanes);
    }
  }
}

template <int block>
struct Registers {
  static constexpr int count = block;
};
/// visit(Registers of a block, its first channel) for all channels, in blocks of kBlock registers, the last
/// ones in smaller ones.
template <typename Visit>
inline __attribute__((always_inline)) void for_blocks(int channels, const Visit& visit) {
  const auto stride = static_cast<std::size_t>(channels);
  std::size_t first = 0;
  for (; first + kBlock * kLanes <= stride; first += kBlock * kLanes) visit(Registers<kBlock>(), first);
  for (; first + 2 * kLanes <= stride; first += 2 * kLanes) visit(Registers<2>(), first);
  if (first < stride) visit(Registers<1>(), first);
}

template <int constants, typename Body>
inline __attribute__((always_inline)) void for_each(std::size_t rows, int channels,
                                                    const PerChannel<constants>& of, const Body& body) {
  for_blocks(
      channels, [&](auto registers, std::size_t first) __attribute__((always_inline)) {
        each_block<constants, decltype(registers)::count>(rows, static_cast<std::size_t>(channels), first, of,
                                                          body);
      });
}

template <int constants, int terms, typename Body>
inline __attribute__((always_inline)) void sum_each(std::size_t rows, int channels,
                                                    const PerChannel<constants>& of,
                                                    double* const (&sums)[terms], const Body& body) {
  for_blocks(
      channels, [&](auto registers, std::size_t first) __attribute__((always_inline)) {
        sum_block<constants, terms, decltype(registers)::count>(rows, static_cast<std::size_t>(channels),
                                                                first, of, sums, body);
      });
}

template <typename T>
void statistics(const T* y, std::size_t rows, int channels, const float* center, double* sum,
                double* square) {
  sum_each<1, 2>(rows, channels, {center}, {sum, square},
                 [=](std::size_t at, const Lanes* constant, Lanes* values) {
                   values[0] = load(y + at) - constant[0];
                   values[1] = values[0] * values[0];
                 });
}

template <typename T>
void normalize_relu(const T* y, std::size_t rows, int channels, const float* scale, const float* shift,
                    T* z) {
  for_each<2>(rows, channels, {scale, shift}, [=](std::size_t at, const Lanes* constant) {
    store(relu(load(y + at) * constant[0] + constant[1]), z + at);
  });
}

template <typename T>
void normalize_add_relu(const T* y, std::size_t rows, int channels, const float* scale, const float* shift,
                        const T* shortcut, T* z) {
  for_each<2>(rows, channels, {scale, shift}, [=](std::size_t at, const Lanes* constant) {
    store(relu(load(y + at) * constant[0] + constant[1] + load(shortcut + at)), z + at);
  });
}

template <typename T>
void normalize_project_relu(const T* y, std::size_t rows, int channels, const float* scale,
                            const float* shift, const T* projected, const float* projected_scale, T* z) {
  for_each<3>(rows, channels, {scale, shift, projected_scale}, [=](std::size_t at, const Lanes* constant) {
    store(relu(load(y + at) * constant[0] + constant[1] + load(projected + at) * constant[2]), z + at);
  });
}

template <typename T>
void mask_by_output(const T* d, const T* y, std::size_t rows, int channels, const float* scale,
                    const float* shift, const float* mean, T* g, double* sum, double* product) {
  sum_each<3, 2>(rows, channels, {scale, shift, mean}, {sum, product},
                 [=](std::size_t at, const Lanes* constant, Lanes* values) {
                   const Lanes output = load(y + at);
                   const Lanes kept =
                       keep(load(d + at), greater(output * constant[0] + constant[1], Lanes{}));
                   store(kept, g + at);
                   values[0] = kept;
                   values[1] = kept * (output - constant[2]);
                 });
}

template <typename T>
void mask_by_sign(const T* d, const T* shortcut, const T* z, const T* y, std::size_t rows, int channels,
                  const float* mean, T* g, double* sum, double* product) {
  const auto mask = [=](std::size_t at, const Lanes& gradient, const Lanes* constant, Lanes* values) {
    const Lanes kept = keep(gradient, greater(load(z + at), Lanes{}));
    store(kept, g + at);
    values[0] = kept;
    values[1] = kept * (load(y + at) - constant[0]);
  };
  if (shortcut == nullptr) {
    sum_each<1, 2>(rows, channels, {mean}, {sum, product},
                   [=](std::size_t at, const Lanes* constant, Lanes* values) {
                     mask(at, load(d + at), constant, values);
                   });
  } else {
    sum_each<1, 2>(rows, channels, {mean}, {sum, product},
                   [=](std::size_t at, const Lanes* constant, Lanes* values) {
                     mask(at, load(d + at) + load(shortcut + at), constant, values);
                   });
  }
}

template <typename T>
void gradient_product(const T* g, const T* y, std::size_t rows, int channels, const float* mean,
                      double* product) {
  sum_each<1, 1>(rows, channels, {mean}, {product},
                 [=](std::size_t at, const Lanes* constant, Lanes* values) {
                   values[0] = load(g + at) * (load(y + at) - constant[0]);
                 });
}

template <typename T, typename Sum>
void input_gradient(const T* g, const Sum* y, std::size_t rows, int channels, const float* a, const float* b,
                    const float* c, T* dy) {
  for_each<3>(rows, channels, {a, b, c}, [=](std::size_t at, const Lanes* constant) {
    store(constant[0] * load(g + at) + (constant[1] * load(y + at) + constant[2]), dy + at);
  });
}

template <typename T>
constexpr ElementwiseLoops<T> kLoops = {
    &statistics<T>,           &normalize_relu<T>, &normalize_add_relu<T>, &normalize_project_relu<T>,
    &mask_by_output<T>,       &mask_by_sign<T>,   &gradient_product<T>,   &input_gradient<T, T>,
    &input_gradient<T, float>};

}  // namespace
}  // namespace nibble
