/* fuzz.h - what the fuzz targets share: repairing what a mutation broke, the cost of an image, and checks that end the run. */
#ifndef HTPW_FUZZ_H
#define HTPW_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "htpw_internal.h"

/* A property that must hold whatever the bytes are. abort() is what libFuzzer takes for a finding. */
#define FUZZ_CHECK(condition)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);                             \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* Bytes before the image or pack in a fuzzer's input: choices of the harness (backend, geometry of the flash, power cut). */
#define FUZZ_CONTROL 8u

/* Deterministic, small, and not the library's own. */
static inline uint32_t fuzz_random(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static inline void *fuzz_alloc(size_t bytes) { /* exactly so much, so that ASan sees the first byte too many */
    void *p = malloc(bytes != 0 ? bytes : 1);
    FUZZ_CHECK(p != NULL);
    return p;
}

/* An image taken apart. Payloads have FUZZ_PAYLOAD bytes of room each. */
#define FUZZ_SECTIONS 16u
#define FUZZ_PAYLOAD 65536u
struct fuzz_section {
    uint8_t tag[4];
    uint8_t *data;
    uint32_t length;
};
struct fuzz_image {
    uint32_t count;
    struct fuzz_section section[FUZZ_SECTIONS];
};

/* Takes apart what looks like an image, however damaged; 0 if there is no table at all. */
int fuzz_image_split(struct fuzz_image *parts, const uint8_t *image, size_t size);
/* Puts it together: offsets, padding and checksums are right. Bytes written, 0 if they would be more than `max`. */
size_t fuzz_image_join(const struct fuzz_image *parts, uint8_t *image, size_t max);
void fuzz_image_free(struct fuzz_image *parts);
/* The section of that name, made empty if there is none and there is room for one; else NULL. */
struct fuzz_section *fuzz_image_section(struct fuzz_image *parts, const char *tag);

/* Makes lengths fit what OPS asks for and values obey the rules that a blind mutation almost always breaks: number of operators, lengths of
 * QUAN, WGHT and CODE, unused bits, top bits of multipliers, ids of codebooks. What was grown is filled from `seed`. */
void fuzz_image_repair(struct fuzz_image *parts, uint32_t seed);

/* Only the checksums, as the table in `image` says. */
void fuzz_image_checksums(uint8_t *image, size_t size);

/* The same for the parts of one operator. */
void fuzz_quan_repair(const struct htpw_op *op, uint8_t *multipliers, uint8_t *shifts, uint8_t *biases);
void fuzz_codes_repair(const struct htpw_model *model, const struct htpw_op *op, uint8_t *codes);

/* Multiply-accumulates, and the like, of synthesis and one inference of an opened image. */
uint64_t fuzz_cost(const struct htpw_model *model);

/* For the Python fuzzer: split, repair and join of `size` bytes in place. Bytes of the result; `size`, unchanged, if it cannot be. */
size_t fuzz_image_mend(uint8_t *image, size_t size, size_t max, uint32_t seed);

/* Also for the Python fuzzer: fuzz_cost of an image, UINT64_MAX if it is not valid. `image` is 4-byte aligned. */
uint64_t fuzz_image_cost(const uint8_t *image, size_t size);

#endif
