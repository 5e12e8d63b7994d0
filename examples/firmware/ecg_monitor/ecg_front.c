#include "ecg_front.h"

static int32_t ecg_clamp(int32_t value, int32_t low, int32_t high) {
    return value < low ? low : value > high ? high : value;
}

/* The same as value >> shift of two's complement, which C leaves to the compiler for negative numbers. */
static int64_t ecg_floor(int64_t value, uint32_t shift) {
    return value >= 0 ? value >> shift : -((-value + ((INT64_C(1) << shift) - 1)) >> shift);
}

static void ecg_begin_second(struct ecg_front *f) {
    f->low = INT16_MAX;
    f->high = INT16_MIN;
    f->rails = f->travel = 0;
}

void ecg_front_open(struct ecg_front *f, int16_t *ring, uint32_t window, uint32_t rate) {
    f->ring = ring;
    f->window = window;
    f->rate = rate;
    f->at = f->samples = f->quality = 0;
    f->baseline = f->sum = f->last = 0;
    f->squares = 0;
    ecg_begin_second(f);
}

/* What the second that has ended was like. */
static uint32_t ecg_judge(const struct ecg_front *f) {
    uint32_t flags = 0;
    if (f->high - f->low < ECG_FLAT) {
        flags |= ECG_LEAD_OFF;
    }
    if (10u * f->rails >= f->rate) {
        flags |= ECG_RAILS;
    }
    if (f->travel > ECG_TRAVEL * f->rate) {
        flags |= ECG_NOISE;
    }
    return flags;
}

int ecg_front_push(struct ecg_front *f, int16_t sample) {
    const int32_t x = sample;
    if (f->samples == 0) {
        f->baseline = x * (1 << ECG_HIGH_PASS_SHIFT);
        f->last = x;
    }
    const int32_t high = x - (int32_t)ecg_floor(f->baseline, ECG_HIGH_PASS_SHIFT);
    f->baseline += high;
    const int32_t h = ecg_clamp(high, INT16_MIN, INT16_MAX), old = f->ring[f->at];
    f->sum += h - old;
    f->squares += (uint64_t)((int64_t)h * h);
    f->squares -= (uint64_t)((int64_t)old * old);
    f->ring[f->at] = (int16_t)h;
    f->at = f->at + 1u == f->window ? 0u : f->at + 1u;
    f->samples++;
    f->low = x < f->low ? x : f->low;
    f->high = x > f->high ? x : f->high;
    f->rails += x <= ECG_RAIL_LOW || x >= ECG_RAIL_HIGH;
    f->travel += (uint32_t)(x > f->last ? x - f->last : f->last - x);
    f->last = x;
    if (f->samples % f->rate != 0) {
        return 0;
    }
    f->quality = f->quality << 4 | ecg_judge(f);
    ecg_begin_second(f);
    return f->samples >= f->window;
}

uint32_t ecg_front_quality(const struct ecg_front *f) {
    const uint32_t seconds = (f->window + f->rate - 1u) / f->rate;
    uint32_t flags = 0;
    for (uint32_t i = 0; i < seconds; i++) {
        flags |= f->quality >> (4u * i) & 15u;
    }
    return flags;
}

/* Largest r with r * r <= value, bit by bit. */
static uint32_t ecg_root(uint64_t value) {
    uint64_t root = 0, bit = UINT64_C(1) << 62;
    while (bit > value) {
        bit >>= 2;
    }
    for (; bit != 0; bit >>= 2) {
        if (value >= root + bit) {
            value -= root + bit;
            root = (root >> 1) + bit;
        } else {
            root >>= 1;
        }
    }
    return (uint32_t)root;
}

void ecg_front_window(const struct ecg_front *f, const struct ecg_scale *scale, int8_t *to) {
    const int32_t n = (int32_t)f->window;
    const uint32_t root = ecg_root(f->squares * f->window - (uint64_t)((int64_t)f->sum * f->sum));
    const uint64_t deviation = root > 2u * f->window ? root : 2u * f->window; /* n times it, two steps at least */
    uint32_t shift = 0;
    while (shift < 31u && (uint64_t)scale->gain << (shift + 1u) < deviation << 31) {
        shift++;
    }
    const int64_t multiplier = (int64_t)(((uint64_t)scale->gain << shift) / deviation);
    uint32_t at = f->at;
    for (int32_t i = 0; i < n; i++) {
        const int64_t product = (int64_t)(f->ring[at] * n - f->sum) * multiplier;
        const int64_t z = ecg_floor(product + (INT64_C(1) << (19u + shift)), 20u + shift);
        to[i] = (int8_t)(z < -256 ? -128 : z > 256 ? 127 : ecg_clamp((int32_t)z + scale->zero_point, -128, 127));
        at = at + 1u == f->window ? 0u : at + 1u;
    }
}
