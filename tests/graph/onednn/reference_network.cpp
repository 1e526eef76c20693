#include "tests/graph/onednn/reference_network.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nibble::reference {
namespace {

std::size_t index(int value) {
  return static_cast<std::size_t>(value);
}

Values masked(Values d, const Values& after_relu) {
  for (std::size_t i = 0; i < d.size(); ++i) d[i] = after_relu[i] > 0 ? d[i] : 0;
  return d;
}

Values sum(Values a, const Values& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

/// visit(output position, input position, tap position), in values, for every valid tap; a position is that
/// of channel 0.
template <typename Visit>
void for_taps(const Convolution& shape, int count, const Visit& visit) {
  for (int image = 0; image < count; ++image) {
    for (int row = 0; row < shape.output_height(); ++row) {
      for (int column = 0; column < shape.output_width(); ++column) {
        const int output =
            ((image * shape.output_height() + row) * shape.output_width() + column) * shape.output_channels;
        for (int i = 0; i < shape.kernel; ++i) {
          for (int j = 0; j < shape.kernel; ++j) {
            const int y = row * shape.stride - shape.padding + i;
            const int x = column * shape.stride - shape.padding + j;
            if (y < 0 || y >= shape.input_height || x < 0 || x >= shape.input_width) continue;
            const int input =
                ((image * shape.input_height + y) * shape.input_width + x) * shape.input_channels;
            visit(index(output), index(input), index((i * shape.kernel + j) * shape.input_channels));
          }
        }
      }
    }
  }
}

/// visit(place in a block's input, place in its output) for every value that shortcut A passes on; `first` is
/// the block's first convolution.
template <typename Visit>
void for_padded(const Convolution& first, int count, const Visit& visit) {
  const int size = first.output_height();
  const int added = (first.output_channels - first.input_channels) / 2;
  for (int image = 0; image < count; ++image) {
    for (int row = 0; row < size; ++row) {
      for (int column = 0; column < size; ++column) {
        const int from =
            ((image * first.input_height + row * first.stride) * first.input_width + column * first.stride) *
            first.input_channels;
        const int to = ((image * size + row) * size + column) * first.output_channels + added;
        for (int i = 0; i < first.input_channels; ++i) visit(index(from + i), index(to + i));
      }
    }
  }
}

}  // namespace

Tensors to_double(const FloatParameters& parameters) {
  Tensors result;
  const auto copy = [](const std::vector<float>& from) { return Values(from.begin(), from.end()); };
  for (const FloatConvolution& each : parameters.convolutions) {
    result.weight.push_back(copy(each.weight));
    result.gamma.push_back(copy(each.gamma));
    result.beta.push_back(copy(each.beta));
    result.running_mean.push_back(copy(each.running_mean));
    result.running_variance.push_back(copy(each.running_variance));
  }
  result.linear_weight = copy(parameters.linear_weight);
  result.linear_bias = copy(parameters.linear_bias);
  return result;
}

Network::Network(const NetworkDescription& description, const Tensors& values)
    : parameters(values), description_(description) {
  const std::size_t layers = description.convolutions.size();
  for (auto* each : {&batch_mean, &batch_variance, &input_, &normalized_}) each->resize(layers);
  inner_.resize(description.blocks.size());
  map_.resize(description.blocks.size() + 1);
}

Values Network::relu(Values values) {
  for (double& value : values) {
    relu_margin = std::min(relu_margin, std::abs(value));
    value = value > 0 ? value : 0;
  }
  return values;
}

Values Network::convolve(int layer, const Values& x) const {
  const Convolution& shape = description_.convolutions[index(layer)];
  const Values& weight = parameters.weight[index(layer)];
  const std::size_t taps = index(shape.kernel * shape.kernel * shape.input_channels);
  Values y(index(count_ * shape.output_height() * shape.output_width() * shape.output_channels));
  // Output channel last, which compilers make quick; each sum keeps its order.
  const std::size_t outputs = index(shape.output_channels);
  Values transposed(weight.size());
  for (std::size_t i = 0; i < weight.size(); ++i) transposed[i % taps * outputs + i / taps] = weight[i];
  for_taps(shape, count_, [&](std::size_t output, std::size_t input, std::size_t tap) {
    for (std::size_t i = 0; i < index(shape.input_channels); ++i) {
      const double* row = transposed.data() + (tap + i) * outputs;
      for (std::size_t o = 0; o < outputs; ++o) y[output + o] += row[o] * x[input + i];
    }
  });
  return y;
}

Values Network::convolve_backward(int layer, const Values& x, const Values& d, Tensors& gradients) const {
  const Convolution& shape = description_.convolutions[index(layer)];
  const Values& weight = parameters.weight[index(layer)];
  const std::size_t taps = index(shape.kernel * shape.kernel * shape.input_channels);
  Values& weight_gradient = gradients.weight[index(layer)];
  weight_gradient.assign(weight.size(), 0.0);
  Values result(x.size());
  for_taps(shape, count_, [&](std::size_t output, std::size_t input, std::size_t tap) {
    for (std::size_t o = 0; o < index(shape.output_channels); ++o) {
      for (std::size_t i = 0; i < index(shape.input_channels); ++i) {
        weight_gradient[o * taps + tap + i] += d[output + o] * x[input + i];
        result[input + i] += d[output + o] * weight[o * taps + tap + i];
      }
    }
  });
  return result;
}

Values Network::normalize(int layer, const Values& y, bool training) {
  const std::size_t l = index(layer);
  const std::size_t channels = parameters.gamma[l].size();
  const std::size_t pixels = y.size() / channels;
  Values mean = parameters.running_mean[l];
  Values variance = parameters.running_variance[l];
  if (training) {
    mean.assign(channels, 0.0);
    variance.assign(channels, 0.0);
    for (std::size_t i = 0; i < y.size(); ++i) mean[i % channels] += y[i] / static_cast<double>(pixels);
    for (std::size_t i = 0; i < y.size(); ++i) {
      const double distance = y[i] - mean[i % channels];
      variance[i % channels] += distance * distance / static_cast<double>(pixels);
    }
    batch_mean[l] = mean;
    batch_variance[l] = variance;
  }
  normalized_[l].resize(y.size());
  Values z(y.size());
  for (std::size_t i = 0; i < y.size(); ++i) {
    const std::size_t channel = i % channels;
    normalized_[l][i] = (y[i] - mean[channel]) / std::sqrt(variance[channel] + 1e-5);
    z[i] = parameters.gamma[l][channel] * normalized_[l][i] + parameters.beta[l][channel];
  }
  return z;
}

Values Network::normalize_backward(int layer, const Values& d, Tensors& gradients) const {
  const std::size_t l = index(layer);
  const std::size_t channels = parameters.gamma[l].size();
  const auto pixels = static_cast<double>(d.size() / channels);
  gradients.gamma[l].assign(channels, 0.0);
  gradients.beta[l].assign(channels, 0.0);
  for (std::size_t i = 0; i < d.size(); ++i) {
    gradients.gamma[l][i % channels] += d[i] * normalized_[l][i];
    gradients.beta[l][i % channels] += d[i];
  }
  Values result(d.size());
  for (std::size_t i = 0; i < d.size(); ++i) {
    const std::size_t channel = i % channels;
    result[i] = parameters.gamma[l][channel] / std::sqrt(batch_variance[l][channel] + 1e-5) *
                (d[i] - gradients.beta[l][channel] / pixels -
                 normalized_[l][i] * gradients.gamma[l][channel] / pixels);
  }
  return result;
}

Values Network::pad_shortcut(const Block& block, const Values& x) const {
  const Convolution& first = description_.convolutions[index(block.conv1)];
  Values result(index(count_ * first.output_height() * first.output_width() * first.output_channels));
  for_padded(first, count_, [&](std::size_t from, std::size_t to) { result[to] = x[from]; });
  return result;
}

Values Network::pad_shortcut_backward(const Block& block, const Values& d) const {
  const Convolution& first = description_.convolutions[index(block.conv1)];
  Values result(index(count_ * first.input_height * first.input_width * first.input_channels));
  for_padded(first, count_, [&](std::size_t from, std::size_t to) { result[from] += d[to]; });
  return result;
}

double Network::pixel(std::uint8_t value, std::size_t channel) const {
  constexpr double mean[] = {0.485, 0.456, 0.406};
  constexpr double deviation[] = {0.229, 0.224, 0.225};
  return (value / 255.0 - mean[channel]) / deviation[channel];
}

Values Network::activation(Place place, int block, Values z) {
  switch (place) {
    case Place::middle:
      return inner_[index(block)] = relu(std::move(z));
    case Place::output:
      return map_[index(block + 1)] = relu(std::move(z));
    default:
      return z;
  }
}

Values Network::activation_backward(Place place, int block, Values d) {
  switch (place) {
    case Place::middle:
      return masked(std::move(d), inner_[index(block)]);
    case Place::output:
      return masked(std::move(d), map_[index(block + 1)]);
    default:
      return d;
  }
}

Values Network::forward(std::span<const std::uint8_t> pixels, int count, bool training) {
  count_ = count;
  relu_margin = std::numeric_limits<double>::infinity();
  const auto layer = [&](int number, const Values& x) {
    input_[index(number)] = x;
    return normalize(number, convolve(number, x), training);
  };
  const Convolution& stem = description_.convolutions[0];
  Values x(index(count * stem.input_height * stem.input_width * 3));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = pixel(pixels[i], i % 3);
  Values map = activation(Place::output, -1, layer(0, x));
  for (int number = 0; number < static_cast<int>(description_.blocks.size()); ++number) {
    const Block& block = description_.blocks[index(number)];
    const Values input = activation(Place::input, number, map);
    Values main = layer(block.conv2, activation(Place::middle, number, layer(block.conv1, input)));
    Values shortcut = map;
    if (block.shortcut == Shortcut::projection) {
      shortcut = activation(Place::shortcut, number, layer(block.projection, input));
    }
    if (block.shortcut == Shortcut::pad_channels) shortcut = pad_shortcut(block, map);
    map = activation(Place::output, number, sum(std::move(main), shortcut));
  }
  const std::size_t channels = index(description_.feature_channels);
  const std::size_t area = index(description_.feature_size * description_.feature_size);
  features_.assign(index(count) * channels, 0.0);
  for (std::size_t i = 0; i < map.size(); ++i) {
    features_[i / (area * channels) * channels + i % channels] += map[i] / static_cast<double>(area);
  }
  const std::size_t classes = index(description_.classes);
  Values logits(index(count) * classes);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    logits[i] = parameters.linear_bias[i % classes];
    for (std::size_t c = 0; c < channels; ++c) {
      logits[i] +=
          parameters.linear_weight[i % classes * channels + c] * features_[i / classes * channels + c];
    }
  }
  return logits;
}

Tensors Network::backward(const Values& logit_gradients) {
  Tensors gradients;
  const std::size_t layers = description_.convolutions.size();
  for (auto* each : {&gradients.weight, &gradients.gamma, &gradients.beta}) each->resize(layers);
  const std::size_t channels = index(description_.feature_channels);
  const std::size_t classes = index(description_.classes);
  const std::size_t area = index(description_.feature_size * description_.feature_size);
  gradients.linear_weight.assign(parameters.linear_weight.size(), 0.0);
  gradients.linear_bias.assign(classes, 0.0);
  Values d(index(count_) * area * channels);
  for (std::size_t i = 0; i < logit_gradients.size(); ++i) {
    const std::size_t image = i / classes;
    gradients.linear_bias[i % classes] += logit_gradients[i];
    for (std::size_t c = 0; c < channels; ++c) {
      const std::size_t weight = i % classes * channels + c;
      gradients.linear_weight[weight] += logit_gradients[i] * features_[image * channels + c];
      for (std::size_t pixel = 0; pixel < area; ++pixel) {
        d[(image * area + pixel) * channels + c] +=
            logit_gradients[i] * parameters.linear_weight[weight] / static_cast<double>(area);
      }
    }
  }
  const auto layer = [&](int number, const Values& output_gradient) {
    return convolve_backward(number, input_[index(number)],
                             normalize_backward(number, output_gradient, gradients), gradients);
  };
  for (int number = static_cast<int>(description_.blocks.size()); number-- > 0;) {
    const Block& block = description_.blocks[index(number)];
    d = activation_backward(Place::output, number, std::move(d));
    Values main = layer(block.conv1, activation_backward(Place::middle, number, layer(block.conv2, d)));
    if (block.shortcut == Shortcut::projection) {
      d = layer(block.projection, activation_backward(Place::shortcut, number, std::move(d)));
      main = sum(std::move(main), d);
    }
    main = activation_backward(Place::input, number, std::move(main));
    switch (block.shortcut) {
      case Shortcut::identity:
        d = sum(std::move(main), d);
        break;
      case Shortcut::projection:
        d = std::move(main);
        break;
      case Shortcut::pad_channels:
        d = sum(std::move(main), pad_shortcut_backward(block, d));
        break;
    }
  }
  layer(0, activation_backward(Place::output, -1, std::move(d)));
  return gradients;
}

}  // namespace nibble::reference
