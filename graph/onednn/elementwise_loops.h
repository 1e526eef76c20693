// The definition of the loops in elementwise.h, included by one file for each instruction set. Everything is
// in an unnamed namespace and nothing of the standard library is instantiated here, so that no function
// compiled for a newer CPU can be linked into the rest.
#pragma once

#include <cstddef>
#include <cstdint>

#include "graph/onednn/elementwise.h"

namespace nibble {
namespace {

using Lanes = float __attribute__((vector_size(32)));
using WideBits = std::uint32_t __attribute__((vector_size(32)));
using HalfBits = std::uint16_t __attribute__((vector_size(16)));
using Mask = std::int32_t __attribute__((vector_size(32)));
using Doubles = double __attribute__((vector_size(32)));

constexpr int kLanes = 8;
/// Channels whose sums stay in registers: 2 sums of 4 registers.
constexpr int kBlock = 4;
/// Rows summed in FP32 before the sum goes to a double.
constexpr std::size_t kRun = 64;

inline __attribute__((always_inline)) Lanes load(const float* from) {
  Lanes value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
inline __attribute__((always_inline)) Lanes load(const Bfloat16* from) {
  HalfBits half;
  __builtin_memcpy(&half, from, sizeof half);
  const WideBits wide = __builtin_convertvector(half, WideBits) << 16;
  Lanes value;
  __builtin_memcpy(&value, &wide, sizeof value);
  return value;
}
inline __attribute__((always_inline)) void store(const Lanes& value, float* to) {
  __builtin_memcpy(to, &value, sizeof value);
}
inline __attribute__((always_inline)) void store(const Lanes& value, Bfloat16* to) {
  WideBits wide;
  __builtin_memcpy(&wide, &value, sizeof wide);
  wide = (wide + 0x7FFFU + ((wide >> 16) & 1U)) >> 16;
  const HalfBits half = __builtin_convertvector(wide, HalfBits);
  __builtin_memcpy(to, &half, sizeof half);
}
inline __attribute__((always_inline)) Lanes keep(const Lanes& value, const Mask& mask) {
  Mask bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  bits &= mask;
  Lanes kept;
  __builtin_memcpy(&kept, &bits, sizeof kept);
  return kept;
}
inline __attribute__((always_inline)) Lanes relu(const Lanes& value) {
  return keep(value, value > 0.0F);
}

inline __attribute__((always_inline)) void add_to(const Lanes& value, double* sum) {
  for (int i = 0; i < kLanes; ++i) sum[i] += static_cast<double>(value[i]);
}

/// body(offset of the value, offset of the channel) for every 8 values, row by row.
template <typename Body>
inline __attribute__((always_inline)) void for_each(std::size_t rows, int channels, const Body& body) {
  const auto stride = static_cast<std::size_t>(channels);
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t channel = 0; channel < stride; channel += kLanes) {
      body(row * stride + channel, channel);
    }
  }
}

/// The sums of `terms` values that body(offset, channel, terms) gives, added to sums[term][channel]. Channels
/// go in blocks of `block * 8`, rows in runs of kRun.
template <int terms, int block, typename Body>
inline __attribute__((always_inline)) void sum_block(std::size_t rows, std::size_t stride, std::size_t first,
                                                     double* const* sums, const Body& body) {
  for (std::size_t run = 0; run < rows; run += kRun) {
    const std::size_t end = run + kRun < rows ? run + kRun : rows;
    Lanes partial[terms][block] = {};
    for (std::size_t row = run; row < end; ++row) {
#pragma GCC unroll 4
      for (int i = 0; i < block; ++i) {
        const std::size_t channel = first + static_cast<std::size_t>(i) * kLanes;
        Lanes values[terms];
        body(row * stride + channel, channel, values);
        for (int term = 0; term < terms; ++term) partial[term][i] += values[term];
      }
    }
    for (int term = 0; term < terms; ++term) {
      for (int i = 0; i < block; ++i) add_to(partial[term][i], sums[term] + first + i * kLanes);
    }
  }
}

template <int terms, typename Body>
inline __attribute__((always_inline)) void sum_each(std::size_t rows, int channels, double* const* sums,
                                                    const Body& body) {
  const auto stride = static_cast<std::size_t>(channels);
  std::size_t first = 0;
  for (; first + kBlock * kLanes <= stride; first += kBlock * kLanes) {
    sum_block<terms, kBlock>(rows, stride, first, sums, body);
  }
  for (; first < stride; first += 2 * kLanes) sum_block<terms, 2>(rows, stride, first, sums, body);
}

template <typename T>
void statistics(const T* y, std::size_t rows, int channels, const float* center, double* sum,
                double* square) {
  double* const sums[] = {sum, square};
  sum_each<2>(rows, channels, sums, [=](std::size_t at, std::size_t channel, Lanes* values) {
    values[0] = load(y + at) - load(center + channel);
    values[1] = values[0] * values[0];
  });
}

template <typename T>
void normalize_relu(const T* y, std::size_t rows, int channels, const float* scale, const float* shift,
                    T* z) {
  for_each(rows, channels, [=](std::size_t at, std::size_t channel) {
    store(relu(load(y + at) * load(scale + channel) + load(shift + channel)), z + at);
  });
}

template <typename T>
void normalize_add_relu(const T* y, std::size_t rows, int channels, const float* scale, const float* shift,
                        const T* shortcut, T* z) {
  for_each(rows, channels, [=](std::size_t at, std::size_t channel) {
    store(relu(load(y + at) * load(scale + channel) + load(shift + channel) + load(shortcut + at)), z + at);
  });
}

template <typename T>
void normalize_project_relu(const T* y, std::size_t rows, int channels, const float* scale,
                            const float* shift, const T* projected, const float* projected_scale, T* z) {
  for_each(rows, channels, [=](std::size_t at, std::size_t channel) {
    store(relu(load(y + at) * load(scale + channel) + load(shift + channel) +
               load(projected + at) * load(projected_scale + channel)),
          z + at);
  });
}

template <typename T>
void mask_by_output(const T* d, const T* y, std::size_t rows, int channels, const float* scale,
                    const float* shift, const float* mean, T* g, double* sum, double* product) {
  double* const sums[] = {sum, product};
  sum_each<2>(rows, channels, sums, [=](std::size_t at, std::size_t channel, Lanes* values) {
    const Lanes output = load(y + at);
    const Lanes kept = keep(load(d + at), output * load(scale + channel) + load(shift + channel) > 0.0F);
    store(kept, g + at);
    values[0] = kept;
    values[1] = kept * (output - load(mean + channel));
  });
}

template <typename T>
void mask_by_sign(const T* d, const T* shortcut, const T* z, const T* y, std::size_t rows, int channels,
                  const float* mean, T* g, double* sum, double* product) {
  double* const sums[] = {sum, product};
  if (shortcut == nullptr) {
    sum_each<2>(rows, channels, sums, [=](std::size_t at, std::size_t channel, Lanes* values) {
      const Lanes kept = keep(load(d + at), load(z + at) > 0.0F);
      store(kept, g + at);
      values[0] = kept;
      values[1] = kept * (load(y + at) - load(mean + channel));
    });
  } else {
    sum_each<2>(rows, channels, sums, [=](std::size_t at, std::size_t channel, Lanes* values) {
      const Lanes kept = keep(load(d + at) + load(shortcut + at), load(z + at) > 0.0F);
      store(kept, g + at);
      values[0] = kept;
      values[1] = kept * (load(y + at) - load(mean + channel));
    });
  }
}

template <typename T>
void gradient_product(const T* g, const T* y, std::size_t rows, int channels, const float* mean,
                      double* product) {
  double* const sums[] = {product};
  sum_each<1>(rows, channels, sums, [=](std::size_t at, std::size_t channel, Lanes* values) {
    values[0] = load(g + at) * (load(y + at) - load(mean + channel));
  });
}

template <typename T>
void input_gradient(const T* g, const T* y, std::size_t rows, int channels, const float* a, const float* b,
                    const float* c, T* dy) {
  for_each(rows, channels, [=](std::size_t at, std::size_t channel) {
    store(load(a + channel) * load(g + at) + (load(b + channel) * load(y + at) + load(c + channel)), dy + at);
  });
}

template <typename T>
constexpr ElementwiseLoops<T> kLoops = {
    &statistics<T>,     &normalize_relu<T>, &normalize_add_relu<T>, &normalize_project_relu<T>,
    &mask_by_output<T>, &mask_by_sign<T>,   &gradient_product<T>,   &input_gradient<T>};

}  // namespace
}  // namespace nibble
