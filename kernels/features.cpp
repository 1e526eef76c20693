#include "kernels/features.h"

#include <emmintrin.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels/requantize.h"

namespace nibble {

namespace {

constexpr int kRegisterBytes = 16;  // of the baseline, SSE2

/// Four sums in 32 bits whose own sum is that of a register of u8.
inline __m128i sums_of(__m128i bytes, std::uint8_t) {
  return _mm_sad_epu8(bytes, _mm_setzero_si128());
}
/// The same of u15.
inline __m128i sums_of(__m128i words, std::uint16_t) {
  return _mm_madd_epi16(words, _mm_set1_epi16(1));
}

/// A cache line of a map's positions, `stride` values apart, added up while it is in registers.
template <typename Value>
struct LineSums {
  static constexpr int kRegisters = 4;
  static constexpr int kValues = kRegisters * kRegisterBytes / static_cast<int>(sizeof(Value));

  static void add(const Value* from, int positions, std::ptrdiff_t stride, std::int32_t* sums) {
    constexpr int kMost = sizeof(Value) == 1 ? 256 : 65536;  // of positions that twice as wide sums hold
    std::fill_n(sums, kValues, 0);
    const __m128i zero = _mm_setzero_si128();
    while (positions > 0) {
      const int some = std::min(positions, kMost);
      __m128i wide[2 * kRegisters];
#pragma GCC unroll 8
      for (__m128i& sum : wide) sum = zero;
      for (int position = 0; position < some; ++position, from += stride) {
#pragma GCC unroll 4
        for (int r = 0; r < kRegisters; ++r) {
          const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + r);
          add_widened(values, Value{}, wide[2 * r], wide[2 * r + 1]);
        }
      }
      positions -= some;
      alignas(kRegisterBytes) Wide values[kValues];
#pragma GCC unroll 8
      for (int r = 0; r < 2 * kRegisters; ++r)
        _mm_store_si128(reinterpret_cast<__m128i*>(values) + r, wide[r]);
      for (int i = 0; i < kValues; ++i) sums[i] += static_cast<std::int32_t>(values[i]);
    }
  }

 private:
  using Wide = std::conditional_t<sizeof(Value) == 1, std::uint16_t, std::uint32_t>;

  static void add_widened(__m128i values, std::uint8_t, __m128i& low, __m128i& high) {
    low = _mm_add_epi16(low, _mm_unpacklo_epi8(values, _mm_setzero_si128()));
    high = _mm_add_epi16(high, _mm_unpackhi_epi8(values, _mm_setzero_si128()));
  }
  static void add_widened(__m128i values, std::uint16_t, __m128i& low, __m128i& high) {
    low = _mm_add_epi32(low, _mm_unpacklo_epi16(values, _mm_setzero_si128()));
    high = _mm_add_epi32(high, _mm_unpackhi_epi16(values, _mm_setzero_si128()));
  }
};

template <typename Value>
std::int32_t sum_of(const Value* values, int count) {
  constexpr int kValues = kRegisterBytes / static_cast<int>(sizeof(Value));
  __m128i four = _mm_setzero_si128();
  int i = 0;
  for (; i + kValues <= count; i += kValues) {
    const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + i));
    four = _mm_add_epi32(four, sums_of(some, Value{}));
  }
  four = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 1));
  std::int32_t sum = _mm_cvtsi128_si32(four);
  for (; i < count; ++i) sum += values[i];
  return sum;
}

}  // namespace

template <typename Value>
void pool_image_lanes(const Value* map, int positions, int channels, int lanes, std::int32_t* sums) {
  const int count = channels * lanes;
  int i = 0;
  for (; i + LineSums<Value>::kValues <= count; i += LineSums<Value>::kValues) {
    LineSums<Value>::add(map + i, positions, count, sums + i);
  }
  for (; i < count; ++i) {
    sums[i] = 0;
    for (int position = 0; position < positions; ++position)
      sums[i] += map[std::ptrdiff_t{position} * count + i];
  }
}

template <typename Value>
void pool_position_lanes(const Value* planes, int positions, int plane_stride, int channels,
                         std::int32_t* sums) {
  for (int channel = 0; channel < channels; ++channel) {
    sums[channel] = sum_of(planes + std::ptrdiff_t{channel} * plane_stride, positions);
  }
}

namespace {

/// Whether all sums are 0 .. 2^15 - 1.
bool are_words(const std::int32_t* sums, std::ptrdiff_t count) {
  std::int32_t bits = 0;
  for (std::ptrdiff_t i = 0; i < count; ++i) bits |= sums[i];
  return (bits & ~0x7FFF) == 0;
}

/// Adds weight * sum of some lanes; of sums that are words as pairs of which the second one is 0, which
/// pmaddwd multiplies. SSE2 has no other multiplication of 32 bits that keeps the lanes in their order.
template <int kLanes>
inline void add_word_products(const std::int32_t* sums, std::int16_t weight, std::int32_t* accumulators) {
  const __m128i pair = _mm_set1_epi32(static_cast<std::uint16_t>(weight));
  for (int i = 0; i < kLanes; i += 4) {
    const __m128i product = _mm_madd_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sums + i)), pair);
    auto* const sum = reinterpret_cast<__m128i*>(accumulators + i);
    _mm_storeu_si128(sum, _mm_add_epi32(_mm_loadu_si128(sum), product));
  }
}

}  // namespace

template <typename Accumulator>
void linear(const std::int32_t* sums, int channels, int lanes, int images,
            std::span<const std::int16_t> weights, std::span<const float> scale,
            std::span<const float> offset, float* logits) {
  constexpr int kBlock = 16;  // lanes at a time
  const auto classes = static_cast<int>(scale.size());
  if (images == 1) {
    for (int k = 0; k < classes; ++k) {
      const auto index = static_cast<std::size_t>(k);
      const std::int16_t* const of_class = weights.data() + index * static_cast<std::size_t>(channels);
      Accumulator accumulator = 0;
      for (int c = 0; c < channels; ++c)
        accumulator += sums[std::ptrdiff_t{c} * lanes] * Accumulator{of_class[c]};
      logits[k] = scaled(accumulator, scale[index], offset[index]);
    }
    return;
  }
  const bool words = sizeof(Accumulator) == sizeof(std::int32_t) && lanes % kBlock == 0 &&
                     are_words(sums, std::ptrdiff_t{channels} * lanes);
  for (int first = 0; first < images; first += kBlock) {
    const int count = std::min(kBlock, images - first);
    for (int k = 0; k < classes; ++k) {
      Accumulator accumulators[kBlock] = {};
      for (int c = 0; c < channels; ++c) {
        const std::int32_t* of_channel = sums + std::ptrdiff_t{c} * lanes + first;
        const std::int16_t weight = weights[static_cast<std::size_t>(k * channels + c)];
        if constexpr (sizeof(Accumulator) == sizeof(std::int32_t)) {
          if (words) {
            add_word_products<kBlock>(of_channel, weight, accumulators);
            continue;
          }
        }
        for (int i = 0; i < count; ++i) accumulators[i] += Accumulator{of_channel[i]} * weight;
      }
      const auto index = static_cast<std::size_t>(k);
      for (int i = 0; i < count; ++i) {
        logits[std::ptrdiff_t{first + i} * classes + k] =
            scaled(accumulators[i], scale[index], offset[index]);
      }
    }
  }
}

void pad_channels(const InputView& input, const OutputView& output, const ActivationFormat& format,
                  int input_channels, int output_channels, int lanes) {
  const int before = (output_channels - input_channels) / 2;
  const auto bytes = static_cast<std::size_t>(lanes * format.bytes);
  const bool whole_groups = before % format.channels == 0 && input_channels % format.channels == 0;
  for (int group = 0; group < group_count(format, output_channels); ++group) {
    const int channel = group * format.channels;
    const bool inside = channel >= before && channel < before + input_channels;
    if (whole_groups && inside) {
      std::memcpy(output.at(0, group), input.at(0, (channel - before) / format.channels), bytes);
    } else if (whole_groups) {
      std::memset(output.at(0, group), 0, bytes);
    } else {
      for (int c = channel; c < std::min(channel + format.channels, output_channels); ++c) {
        const bool copied = c >= before && c < before + input_channels;
        for (int lane = 0; lane < lanes; ++lane) {
          store_activation(output, format, 0, c, lane,
                           copied ? load_activation(input, format, 0, c - before, lane) : 0);
        }
      }
    }
  }
}

namespace {

/// One pixel of `count` images, or as many pixels of one, as quads8: red, green, blue, 0. image_bytes: from
/// one to the next. Reads a byte behind each pixel.
void store_quads(const std::uint8_t* pixel, std::ptrdiff_t image_bytes, int count, std::uint8_t* to) {
  int image = 0;
  const __m128i mask = _mm_set1_epi32(0x00FFFFFF);
  for (; image + 4 <= count; image += 4) {
    const std::uint8_t* const from = pixel + image * image_bytes;
    const auto quad = [&](int i) {
      std::int32_t value = 0;
      std::memcpy(&value, from + i * image_bytes, sizeof value);
      return _mm_cvtsi32_si128(value);
    };
    const __m128i quads =
        _mm_unpacklo_epi64(_mm_unpacklo_epi32(quad(0), quad(1)), _mm_unpacklo_epi32(quad(2), quad(3)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 4 * image), _mm_and_si128(quads, mask));
  }
  for (; image < count; ++image) {
    std::uint32_t quad = 0;
    std::memcpy(&quad, pixel + image * image_bytes, sizeof quad);
    quad &= 0x00FFFFFFU;
    std::memcpy(to + 4 * image, &quad, sizeof quad);
  }
}

/// The same as pairs16: red, green in the first group, blue, 0 in the second.
inline void store_pairs(const std::uint8_t* pixel, std::ptrdiff_t image_bytes, int count,
                        const OutputView& position) {
  for (int image = 0; image < count; ++image) {
    const std::uint8_t* from = pixel + image * image_bytes;
    const std::uint16_t pairs[2][2] = {{from[0], from[1]}, {from[2], 0}};
    for (int group = 0; group < 2; ++group) {
      std::memcpy(position.at(0, group) + 4 * image, pairs[group], sizeof pairs[group]);
    }
  }
}

}  // namespace

void load_pixels(const std::uint8_t* images, int count, int height, int width, const ActivationFormat& format,
                 const OutputView& output, std::ptrdiff_t row_stride) {
  constexpr int kBlock = 32;  // images whose rows stay in the first-level cache, however far apart they lie
  const std::ptrdiff_t image_bytes = std::ptrdiff_t{height} * width * 3;
  const std::ptrdiff_t pixels = std::ptrdiff_t{height} * width;
  if (count == 1 && format == kQuads8 && output.position_stride == 4 &&
      row_stride == 4 * std::ptrdiff_t{width}) {
    // One image without gaps; the last pixel apart, since nothing may be read behind it.
    store_quads(images, 3, static_cast<int>(pixels) - 1, output.data);
    std::uint8_t* last = output.data + 4 * (pixels - 1);
    std::memcpy(last, images + 3 * (pixels - 1), 3);
    last[3] = 0;
    return;
  }
  for (int row = 0; row < height; ++row) {
    for (int first = 0; first < count; first += kBlock) {
      const int block = std::min(kBlock, count - first);
      for (int column = 0; column < width; ++column) {
        const std::uint8_t* pixel = images + first * image_bytes + (std::ptrdiff_t{row} * width + column) * 3;
        std::uint8_t* to = output.data + row * row_stride + column * output.position_stride;
        const bool last = row + 1 == height && column + 1 == width;
        if (format == kQuads8 && !last) {
          store_quads(pixel, image_bytes, block, to + 4 * first);
          continue;
        }
        if (format == kPairs16) {
          store_pairs(pixel, image_bytes, block, {to + 4 * first, 0, output.group_stride});
          continue;
        }
        const OutputView position{to, 0, output.group_stride};
        for (int image = 0; image < block; ++image) {
          for (int c = 0; c < 3; ++c) {
            store_activation(position, format, 0, c, first + image, pixel[image * image_bytes + c]);
          }
        }
      }
    }
  }
}

template void pool_image_lanes<std::uint8_t>(const std::uint8_t*, int, int, int, std::int32_t*);
template void pool_image_lanes<std::uint16_t>(const std::uint16_t*, int, int, int, std::int32_t*);
template void pool_position_lanes<std::uint8_t>(const std::uint8_t*, int, int, int, std::int32_t*);
template void pool_position_lanes<std::uint16_t>(const std::uint16_t*, int, int, int, std::int32_t*);
template void linear<std::int32_t>(const std::int32_t*, int, int, int, std::span<const std::int16_t>,
                                   std::span<const float>, std::span<const float>, float*);
template void linear<std::int64_t>(const std::int32_t*, int, int, int, std::span<const std::int16_t>,
                                   std::span<const float>, std::span<const float>, float*);

}  // namespace nibble
