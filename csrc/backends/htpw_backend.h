/* htpw_backend.h - what a backend is: a set of kernels, the layout it wants cached kernels in, and the scratch it needs.
 *
 * The portable kernels are the definition. A backend gives the same bytes for every argument that SPEC section 7 allows,
 * is compiled only where the compiler's feature macros (or, on x86, the build) say so, and can be switched off with
 * HTPW_CONFIG_NO_<BACKEND>. Which backend runs is decided in one place, htpw_backend_best; the memory plan and the run
 * both take sizes from the functions below, so they cannot disagree.
 */
#ifndef HTPW_BACKEND_H
#define HTPW_BACKEND_H

#include "../htpw.h"
#include "../htpw_config.h"
#include "../kernels/htpw_kernels.h"

/* Where weight (o, i) of a matrix w[out_c][in_c] lies in the cache. The matrix is cut into blocks of out_block rows; a block
 * is stored in steps of in_block columns; one step holds out_block x in_block weights, row after row:
 *     element ((o/out_block * steps + i/in_block) * out_block + o%out_block) * in_block + i%in_block
 * with steps = ceil(in_c/in_block). Rows and columns that only fill up a block are 0. With `sums`, int32 sums of each row's
 * weights follow, one per row of the filled-up matrix. Row-major int8 is {1, 1, 1, 0}. */
struct htpw_layout {
    uint8_t out_block, in_block; /* in_block is 1, 2 or a multiple of 4 */
    uint8_t bytes; /* of one weight: 1, or 2 if widened to int16 */
    uint8_t sums; /* 1: row sums follow the weights */
};

/* Memory rule of a backend: pure arithmetic, known on every machine, so that a host can plan for a target. */
struct htpw_backend_rule {
    struct htpw_layout layout; /* of generated conv1x1 and fc kernels; other kernels are cached row-major */
    uint8_t
        row_block; /* rows of products, at 16 bits, that conv, conv1x1, conv1x1_s4 and packed keep in scratch; 0: none */
    uint8_t depthwise_bytes; /* scratch bytes per weight of a depthwise kernel, taps rounded up to even; 0: none */
    uint16_t synth_bytes; /* scratch bytes of synth */
};

/* One layer of the generator or a head, ready to run: y = min(max(rq(biases[o] + sum_i w[o][i] * x[i]), act_min), act_max). */
struct htpw_synth_layer {
    const void *weights; /* in the layout of the backend if is_packed, else row-major int8 */
    const int32_t *biases; /* NULL: 0 */
    uint32_t bias_max; /* their largest absolute value */
    int32_t multiplier, shift, rows, cols, act_min, act_max, is_packed;
};

#define HTPW_SYNTH_LAYERS_MAX 5 /* three of a generator, two of a factorised head */
#define HTPW_SYNTH_TILES_MAX 16u /* made by one call */

/* From codes to weights: layer[0] takes codes, of which those of one tile follow those of another, layer[i] the y of
 * layer[i - 1], and the last one is a head. */
struct htpw_synth_job {
    struct htpw_synth_layer layer[HTPW_SYNTH_LAYERS_MAX];
    uint32_t layers;
    const uint8_t *codes, *codes_end; /* signed fields of code_bits, dz per tile */
    uint32_t code_bits, dz;
    uint32_t span; /* bytes among which all y of a call lie */
    int state; /* of the backend; 0 in front of the first call */
    void *scratch; /* of the backend, kept between calls; 16-byte aligned, the rule's synth_bytes */
};

/* Kernels of a backend. Arguments as in htpw_kernels.h; `scratch` has htpw_backend_scratch bytes, 4-byte aligned, content
 * free. x, w and y have no alignment. `packed` is 4-byte aligned and in the rule's layout. */
struct htpw_backend {
    int id; /* enum htpw_backend_id */
    void (*conv)(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset, const int8_t *x,
                 const int8_t *w, const int32_t *bias, void *scratch, int8_t *y);
    void (*depthwise)(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset, const int8_t *x,
                      const int8_t *w, const int32_t *bias, void *scratch, int8_t *y);
    /* w[out_c][in_c] row-major: stored kernels in flash; fc is the same with its batch as rows, filter offset 0 */
    void (*conv1x1)(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                    const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch, int8_t *y);
    /* the same product with the kernel in the cache layout */
    void (*packed)(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                   const int8_t *x, const void *packed, const int32_t *bias, void *scratch, int8_t *y);
    void (*add)(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b, int8_t *y);
    void (*avgpool)(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y);
    void (*maxpool)(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y);
    /* conv1x1 by packed 4-bit weights, row-major: weight i of all in the low (even i) or high nibble of byte i / 2 */
    void (*conv1x1_s4)(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                       const int8_t *x, const uint8_t *w, const int32_t *bias, void *scratch, int8_t *y);
    /* Makes the tiles first .. first + tiles - 1, at most HTPW_SYNTH_TILES_MAX. Weights k*g .. k*g + g - 1 of tile t go to
     * y[t] + k * step, g being the rule's in_block if that is a multiple of 4, else 4; step is g or what is between such
     * groups in a cache layout, y and step multiples of 4. The last group is filled up: y must have room. y itself has room for
     * HTPW_SYNTH_TILES_MAX addresses, and may be changed, as may packed weights. Returns 0, with nothing done, for jobs that it
     * cannot do exactly; that depends on job and step alone. NULL: there is nothing better than `packed`. */
    int (*synth)(struct htpw_synth_job *job, uint32_t first, uint32_t tiles, int8_t **y, uint32_t step);
};

/* The portable conv1x1_s4, for the tables of backends that have none of their own. */
void htpw_conv1x1_s4_plain(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                           const int8_t *x, const uint8_t *w, const int32_t *bias, void *scratch, int8_t *y);

/* n signed values of a stream of `bits` <= 8 each, from value `first` on. */
void htpw_values_read(const uint8_t *stream, uint32_t first, uint32_t n, uint32_t bits, int8_t *to);

/* The rule of backend `id`; NULL if there is no such id. HTPW_BACKEND_BEST is resolved. */
const struct htpw_backend_rule *htpw_backend_rule(int id);

/* The kernels of backend `id`; NULL if this build or this CPU has them not. */
const struct htpw_backend *htpw_backend_get(int id);

/* The backend whose kernels and layout synthesis uses for the generator and the heads when `id` runs the network. */
int htpw_backend_synthesis(int id);

/* Scratch bytes of a convolution-like kernel with `products` products per output, or of a depthwise one of `taps` taps. */
uint32_t htpw_backend_scratch(const struct htpw_backend_rule *rule, uint32_t products);
uint32_t htpw_backend_depthwise_scratch(const struct htpw_backend_rule *rule, uint32_t taps, uint32_t channels);

/* Bytes of a packed w[out_c][in_c]; < 2^27 for any kernel that an image can hold. */
uint32_t htpw_layout_bytes(const struct htpw_layout *layout, uint32_t out_c, uint32_t in_c);

/* Puts `count` row-major weights, the first of flat index `first`, into their places. Begin with htpw_layout_clear, which
 * zeroes at least the places that only fill up, put every weight, end with htpw_layout_finish, which makes the sums. */
void htpw_layout_clear(const struct htpw_layout *layout, uint32_t out_c, uint32_t in_c, void *packed);
void htpw_layout_put(const struct htpw_layout *layout, uint32_t in_c, uint32_t first, uint32_t count, const int8_t *w,
                     void *packed);
void htpw_layout_finish(const struct htpw_layout *layout, uint32_t out_c, uint32_t in_c, void *packed);

/* The row-major int8 weights back from their layout: the logical bytes on which all tellings agree. */
void htpw_layout_get(const struct htpw_layout *layout, uint32_t out_c, uint32_t in_c, const void *packed, int8_t *w);

#endif
