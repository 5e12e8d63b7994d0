/* ecg_front.h - from single samples of an ECG to windows for the network: docs/SPEC.md section 12. Integers only, no heap. */
#ifndef ECG_FRONT_H
#define ECG_FRONT_H

#include <stdint.h>

#define ECG_SECONDS_MAX 8 /* of a window, rounded up */
#define ECG_WINDOW_MAX 4096 /* samples of a window */
#define ECG_HIGH_PASS_SHIFT 8 /* baseline follows in 2^8 samples: 0.22 Hz at 360 Hz */
#define ECG_RAIL_LOW 0 /* codes of the converter that mean: out of range */
#define ECG_RAIL_HIGH 2047
#define ECG_FLAT 4 /* steps of the converter: a second that moves less is of a loose lead */
#define ECG_TRAVEL 40 /* mean step from sample to sample of a second that is noise */

/* Signal quality of a second. */
enum { ECG_LEAD_OFF = 1, ECG_RAILS = 2, ECG_NOISE = 4 };

struct ecg_front {
    int16_t *ring; /* `window` samples behind the high pass, the oldest at `at`; the caller's, zeroed */
    uint32_t window, rate; /* samples of a window; per second */
    uint32_t at, samples; /* samples: so far */
    int32_t baseline; /* 2^ECG_HIGH_PASS_SHIFT times what the high pass takes away */
    int32_t sum; /* of the ring */
    uint64_t squares;
    uint32_t quality; /* of the last seconds, 4 bits each, the newest lowest */
    int32_t low, high, last;
    uint32_t rails, travel; /* of this second */
};

/* The step of the network's input: 2^20 / scale, and its zero point. */
struct ecg_scale {
    uint32_t gain;
    int32_t zero_point;
};

void ecg_front_open(struct ecg_front *f, int16_t *ring, uint32_t window, uint32_t rate);

/* Takes one sample; 1 if a second has ended and there is a whole window. */
int ecg_front_push(struct ecg_front *f, int16_t sample);

/* Signal quality of the seconds that the window reaches into, or'ed; 0 is good. */
uint32_t ecg_front_quality(const struct ecg_front *f);

/* The window, mean 0 and standard deviation 1 in steps of the network's input. */
void ecg_front_window(const struct ecg_front *f, const struct ecg_scale *scale, int8_t *to);

#endif
