#include "graph/onednn/float_training.h"

#include <omp.h>

#include <array>

#include "graph/onednn/pixels.h"
#include "graph/onednn/training_tiles.h"

namespace nibble {
namespace {

template <typename T>
class Trainer final : public TiledTraining<T> {
 public:
  using TiledTraining<T>::TiledTraining;

 private:
  using Base = TiledTraining<T>;
  using Base::current_gradient_;
  using Base::finish_gradient;
  using Base::kChannels;
  using Base::kSumStride;
  using Base::layer;
  using Base::layers_;
  using Base::linear_;
  using Base::linear_weight_;
  using Base::loops_;
  using Base::main_source;
  using Base::map_gradient_;
  using Base::maps_;
  using Base::network_;
  using Base::projected_source;
  using Base::sums;
  using Base::trainable;
  using Base::workers_;
  using typename Base::Tile;

  void begin() override {
    linear_ = trainable.data() + linear_weight_;
    for (TrainingLayer<T>& each : layers_) each.normalization.center = each.normalization.running_mean;
  }
  void set_weight(int number) override {
    const int thread = omp_get_thread_num();
    layer(number).set_weight(thread, workers_[index(thread)], trainable.data() + layer(number).weight);
  }
  void take_pixels(const std::uint8_t* pixels, std::size_t count, T* x) const override {
    pixel_normalization_.apply(pixels, count, x);
  }
  void make_map(std::size_t map, const Tile& tile) override;
  T* block_input(std::size_t map, const Tile& tile) override {
    return maps_[map].x.data() + tile.first * maps_[map].image();
  }
  void make_middle(const TrainingLayer<T>& first, const Tile& tile, T* z) const override;
  void middle_gradient(const TrainingLayer<T>& first, const Tile& tile, T* g) override;
  void last_gradient(const Tile& tile, const T* d) override {
    mask_map(maps_.size() - 1, tile, d, nullptr, map_gradient_[current_gradient_].data());
  }
  void block_gradient(std::size_t block, const Tile& tile, T* d, const T* projected) override;
  void finish_map(std::size_t map) override;

  void mask_map(std::size_t map, const Tile& tile, const T* d, const T* shortcut, T* gradient);

  const PixelNormalization pixel_normalization_;
};

template <typename T>
void Trainer<T>::make_map(std::size_t map, const Tile& tile) {
  Map<T>& target = maps_[map];
  const TrainingLayer<T>& source = main_source(map);
  const std::size_t offset = tile.first * target.image();
  const std::size_t rows = tile.valid * target.pixels();
  T* x = target.x.data() + offset;
  const T* y = source.y.data() + offset;
  const float* scale = source.normalization.scale.data();
  const float* shift = source.normalization.shift.data();
  if (map == 0) {
    loops_.normalize_relu(y, rows, target.channels, scale, shift, x);
    return;
  }
  switch (network_.blocks[map - 1].shortcut) {
    case Shortcut::identity:
      loops_.normalize_add_relu(y, rows, target.channels, scale, shift, maps_[map - 1].x.data() + offset, x);
      break;
    case Shortcut::projection: {
      const TrainingLayer<T>& projection = *projected_source(map);
      std::array<float, kChannels> both;
      for (std::size_t i = 0; i < index(target.channels); ++i) {
        both[i] = shift[i] + projection.normalization.shift[i];
      }
      loops_.normalize_project_relu(y, rows, target.channels, scale, both.data(),
                                    projection.y.data() + offset, projection.normalization.scale.data(), x);
      break;
    }
    case Shortcut::pad_channels:
      loops_.normalize_add_relu(y, rows, target.channels, scale, shift, this->padded_shortcut(map, tile), x);
      break;
  }
}

template <typename T>
void Trainer<T>::make_middle(const TrainingLayer<T>& first, const Tile& tile, T* z) const {
  loops_.normalize_relu(first.y.data() + tile.first * first.output_image(),
                        tile.valid * first.output_pixels(), first.shape.output_channels,
                        first.normalization.scale.data(), first.normalization.shift.data(), z);
}

template <typename T>
void Trainer<T>::middle_gradient(const TrainingLayer<T>& first, const Tile& tile, T* g) {
  const Normalization& normalization = first.normalization;
  double* sum = sums(0, tile);
  std::fill_n(sum, kSumStride, 0.0);
  loops_.mask_by_output(g, first.y.data() + tile.first * first.output_image(),
                        tile.valid * first.output_pixels(), normalization.channels,
                        normalization.scale.data(), normalization.shift.data(), normalization.mean.data(), g,
                        sum, sum + kChannels);
}

/// g of maps_[map] from d and the shortcut's gradient, with the sums that the normalizations before it need.
template <typename T>
void Trainer<T>::mask_map(std::size_t map, const Tile& tile, const T* d, const T* shortcut, T* gradient) {
  const Map<T>& target = maps_[map];
  const std::size_t offset = tile.first * target.image();
  const std::size_t rows = tile.valid * target.pixels();
  const TrainingLayer<T>& source = main_source(map);
  T* g = gradient + offset;
  double* sum = sums(0, tile);
  std::fill_n(sum, kSumStride, 0.0);
  loops_.mask_by_sign(d, shortcut, target.x.data() + offset, source.y.data() + offset, rows, target.channels,
                      source.normalization.mean.data(), g, sum, sum + kChannels);
  if (const TrainingLayer<T>* projection = projected_source(map)) {
    double* product = sums(1, tile) + kChannels;
    std::fill_n(product, kChannels, 0.0);
    loops_.gradient_product(g, projection->y.data() + offset, rows, target.channels,
                            projection->normalization.mean.data(), product);
  }
}

template <typename T>
void Trainer<T>::block_gradient(std::size_t block, const Tile& tile, T* d, const T* projected) {
  const T* shortcut = projected;
  switch (network_.blocks[block].shortcut) {
    case Shortcut::identity:
      shortcut = map_gradient_[current_gradient_].data() + tile.first * maps_[block].image();
      break;
    case Shortcut::projection:
      break;
    case Shortcut::pad_channels:
      shortcut = this->padded_gradient(block, tile);
      break;
  }
  mask_map(block, tile, d, shortcut, map_gradient_[1 - current_gradient_].data());
}

template <typename T>
void Trainer<T>::finish_map(std::size_t map) {
  const int tile = this->map_tile(map);
  finish_gradient(main_source(map), 0, 0, tile);
  if (TrainingLayer<T>* projection = projected_source(map)) finish_gradient(*projection, 0, 1, tile);
}

std::unique_ptr<TrainingImplementation> make_trainer(const NetworkDescription& network, int batch_size,
                                                     Precision precision) {
  require_precision(precision);
  return precision == Precision::bf16 ? make_training<Trainer<Bfloat16>>(network, batch_size)
                                      : make_training<Trainer<float>>(network, batch_size);
}

}  // namespace

FloatTraining::FloatTraining(const NetworkDescription& network, int batch_size, Precision precision)
    : implementation_(make_trainer(network, batch_size, precision)) {}
FloatTraining::FloatTraining(std::unique_ptr<TrainingImplementation> implementation)
    : implementation_(std::move(implementation)) {}
FloatTraining::FloatTraining(FloatTraining&&) noexcept = default;
FloatTraining& FloatTraining::operator=(FloatTraining&&) noexcept = default;
FloatTraining::~FloatTraining() = default;

void FloatTraining::set_parameters(const FloatParameters& parameters) {
  implementation_->set_parameters(parameters);
}

FloatParameters FloatTraining::parameters() const {
  return implementation_->parameters();
}

std::span<float> FloatTraining::trainable() {
  return {implementation_->trainable.data(), implementation_->trainable.size()};
}

std::span<const float> FloatTraining::trainable() const {
  return {implementation_->trainable.data(), implementation_->trainable.size()};
}

std::span<const float> FloatTraining::gradients() const {
  return {implementation_->gradients.data(), implementation_->gradients.size()};
}

const std::vector<ParameterGroup>& FloatTraining::groups() const {
  return implementation_->groups;
}

std::span<const float> FloatTraining::forward(std::span<const std::uint8_t> pixels_nhwc, int count) {
  return implementation_->forward(pixels_nhwc.data(), count);
}

void FloatTraining::backward(std::span<const float> logit_gradients) {
  implementation_->backward(logit_gradients);
}

}  // namespace nibble
