/* htpw_dsp_synth.c - synthesis on Armv7E-M: tiles by pairs, from packed codes to the weights of the cache, in 16-bit halves.
 *
 * A *record* holds the vectors x of the tiles a and b of a pair as words of two columns, in 8 slots of two words (a, b): slot
 * 0 has columns 0 and 1, and the last slots the others, so that the unrolled products below, which end at the last slot, can
 * be entered in their middle. One multiplier and shift for a whole layer leave its constants in registers.
 *
 * Step 2 of SPEC section 2, h = (v * M + 2^30) >> 31 = (v * 2M + 2^31) >> 32:
 *   hidden layers  x is scaled by 2^s, s >= 1, so that SMMULR by M >> (s - 1) does it; the low 16 bits of M are 0
 *   heads          2M does not fit int32, but 2M - 2^32 does where M >= 2^30, and SMMLAR adds v * 2^32 back
 * Step 3 with R >= 2, to nearest with ties away from zero:
 *   hidden layers  SMMULR by 2^(32-R) is floor(h / 2^R + 1/2): ties go up, and the clamp at 0 makes that no matter below 0
 *   heads          SMMULR by 2^(32-R) + 1 adds h / 2^32 to that, which moves negative ties, and nothing else, below
 *                  their limit as long as |h| < 2^(32-R): all other h are 2^-R or more away from it. For R <= 12 and larger
 *                  |h| the result is beyond 2^8 and still clamped.
 */
#include "htpw_dsp.h"

#ifdef HTPW_HAS_ARMV7EM_DSP

#define HTPW_DSP_SLOTS 8
#define HTPW_DSP_COLS (2 * HTPW_DSP_SLOTS)
#define HTPW_DSP_RECORD (2 * HTPW_DSP_SLOTS) /* words */
#define HTPW_DSP_PAIRS 8                     /* of tiles, at most */
#define HTPW_DSP_CODE_SCALE 4                /* codes are scaled by 2^4, as unpacking leaves them */
#define HTPW_DSP_SLACK 8                     /* words behind the last record, which unpacking may write */

/* What one layer does with some pairs of tiles; the assembly knows the offsets and copies it to its stack. */
struct htpw_dsp_synth {
    int32_t multiplier, power;   /* 0, 4: of steps 2 and 3 */
    int32_t offset;              /* 8: head: 127, so that outputs are never negative */
    uint32_t ones;               /* 12 */
    uint32_t apart;              /* 16: bytes from y of a to y of b, or from twice y to the bias; set there */
    const void *w_end;           /* 20 */
    uint32_t slots;              /* 24: of x; becomes the address to enter at */
    const void *w;               /* 28 */
    const uint32_t *x;           /* 32: records */
    const void *y, *y_end;       /* 36, 40: head: addresses of the tiles' weights; hidden layer: records */
    uint32_t tail;               /* 44: bytes from a record of y to its second slot in use, less one slot */
    const int32_t *bias;         /* 48: hidden layer: four, scaled, the same four, the next four ... */
    uint32_t unused;
};

typedef char htpw_dsp_synth_is_56_bytes[sizeof(struct htpw_dsp_synth) == 56 ? 1 : -1];

/* Two columns of two tiles by four rows of weights; 11 instructions of four bytes. Sums: a r4-r7, b r8-r11. */
#define HTPW_STEP(slot)                                                                                                \
    "ldrd r12, lr, [sp, #" #slot "]\n"                                                                                 \
    "ldrd r2, r3, [r1], #8\n"                                                                                          \
    "smlad r4, r2, r12, r4\n"                                                                                          \
    "smlad r8, r2, lr, r8\n"                                                                                           \
    "smlad r5, r3, r12, r5\n"                                                                                          \
    "smlad r9, r3, lr, r9\n"                                                                                           \
    "ldrd r2, r3, [r1], #8\n"                                                                                          \
    "smlad r6, r2, r12, r6\n"                                                                                          \
    "smlad r10, r2, lr, r10\n"                                                                                         \
    "smlad r7, r3, r12, r7\n"                                                                                          \
    "smlad r11, r3, lr, r11\n"

/* The other steps; the last slots - 1 of them. r2, r3, r12, lr then hold the constants. */
#define HTPW_STEPS                                                                                                     \
    "ldr pc, [sp, #24]\n"                                                                                              \
    "3:\n" HTPW_STEP(64) HTPW_STEP(72) HTPW_STEP(80) HTPW_STEP(88) HTPW_STEP(96) HTPW_STEP(104) HTPW_STEP(112)         \
    "ldm sp, {r2, r3, r12, lr}\n"

#define HTPW_EACH(code) code(4) code(5) code(6) code(7) code(8) code(9) code(10) code(11)

/* Copies the job, makes `slots` the address to enter at, and a record, which r10 is the job's y to. */
#define HTPW_ENTER                                                                                                     \
    "push {r4-r11, lr}\n"                                                                                              \
    "sub sp, sp, #124\n" /* an odd number of words, as were pushed */                                                  \
    "mov r12, sp\n"                                                                                                    \
    "ldm r0!, {r2-r8}\n"                                                                                               \
    "stm r12!, {r2-r8}\n"                                                                                              \
    "rsb r8, r8, #8\n"                                                                                                 \
    "ldm r0, {r2-r7, r9}\n"                                                                                            \
    "stm r12, {r2-r7, r9}\n"                                                                                           \
    "mov r9, #44\n"                                                                                                    \
    "adr.w r2, 3f\n"                                                                                                   \
    "mla r8, r8, r9, r2\n"                                                                                             \
    "orr r8, r8, #1\n" /* Thumb */                                                                                     \
    "str r8, [sp, #24]\n"                                                                                              \
    "1:\n"                                                                                                             \
    "ldrd r0, r10, [sp, #32]\n"                                                                                        \
    "add r12, sp, #56\n"                                                                                               \
    "ldm r0!, {r2-r9}\n"                                                                                               \
    "stm r12!, {r2-r9}\n"                                                                                              \
    "ldm r0!, {r2-r9}\n"                                                                                               \
    "stm r12, {r2-r9}\n"                                                                                               \
    "ldr r1, [sp, #28]\n"

#define HTPW_SYNTH_NAKED(name, code)                                                                                   \
    __attribute__((naked, noinline, aligned(4))) static void name(                                                     \
        const struct htpw_dsp_synth *job __attribute__((unused))) {                                                    \
        __asm__ volatile(".syntax unified\n" HTPW_ENTER code "add sp, sp, #124\n"                                      \
                         "pop {r4-r11, pc}\n");                                                                        \
    }

#define HTPW_HIDDEN_SCALE(r) "smmulr r" #r ", r" #r ", r2\n"
#define HTPW_HIDDEN_SHIFT(r) "smmulr r" #r ", r" #r ", r3\n"

/* y is the next record, four rows being two slots. */
HTPW_SYNTH_NAKED(htpw_dsp_synth_hidden,
                 "add r2, r10, #64\n"
                 "strd r0, r2, [sp, #32]\n"
                 "ldrd r2, r3, [sp, #44]\n"
                 "add r0, r10, r2\n"
                 "sub r3, r3, r0, lsl #1\n"
                 "str r3, [sp, #16]\n"
                 "2:\n"
                 "ldr r2, [sp, #16]\n"
                 "add r2, r2, r0, lsl #1\n" /* 32 bytes of biases, twice four, for 16 of y */
                 "ldm r2, {r4-r11}\n" HTPW_STEP(56) HTPW_STEPS HTPW_EACH(HTPW_HIDDEN_SCALE) HTPW_EACH(HTPW_HIDDEN_SHIFT)
                 "pkhbt r4, r4, r5, lsl #16\n"
                 "pkhbt r5, r8, r9, lsl #16\n"
                 "pkhbt r6, r6, r7, lsl #16\n"
                 "pkhbt r7, r10, r11, lsl #16\n"
                 "usat16 r4, #7, r4\n"
                 "usat16 r5, #7, r5\n"
                 "usat16 r6, #7, r6\n"
                 "usat16 r7, #7, r7\n"
                 "stm r0!, {r4-r7}\n"
                 "ldr r7, [sp, #20]\n"
                 "cmp r1, r7\n"
                 "bne.w 2b\n"
                 "ldrd r2, r3, [sp, #36]\n"
                 "ldr r12, [sp, #44]\n"
                 "add r12, r12, r2\n"
                 "ldrd r4, r5, [r12, #-64]\n" /* columns 0 and 1 go to slot 0 */
                 "strd r4, r5, [r2, #-64]\n"
                 "cmp r2, r3\n"
                 "bne.w 1b\n")

#define HTPW_HEAD_SCALE(r) "smmlar r" #r ", r" #r ", r2, r" #r "\n"
#define HTPW_HEAD_SHIFT(r) "smmlar r" #r ", r" #r ", r3, r12\n"

/* From y + 127: halves limited to 0 .. 255, bytes in order, then 0 up to 1 and 127 + 1 down again. */
#define HTPW_HEAD(name, step)                                                                                          \
    HTPW_SYNTH_NAKED(name, "ldrd r2, r3, [r10], #8\n"                                                                  \
                           "strd r0, r10, [sp, #32]\n"                                                                 \
                           "mov r0, r2\n"                                                                              \
                           "sub r3, r3, r2\n"                                                                          \
                           "str r3, [sp, #16]\n"                                                                       \
                           "2:\n"                                                                                      \
                           "ldrd r12, lr, [sp, #56]\n"                                                                 \
                           "ldrd r2, r3, [r1], #8\n"                                                                   \
                           "smuad r4, r2, r12\n"                                                                       \
                           "smuad r8, r2, lr\n"                                                                        \
                           "smuad r5, r3, r12\n"                                                                       \
                           "smuad r9, r3, lr\n"                                                                        \
                           "ldrd r2, r3, [r1], #8\n"                                                                   \
                           "smuad r6, r2, r12\n"                                                                       \
                           "smuad r10, r2, lr\n"                                                                       \
                           "smuad r7, r3, r12\n"                                                                       \
                           "smuad r11, r3, lr\n" HTPW_STEPS HTPW_EACH(HTPW_HEAD_SCALE) HTPW_EACH(HTPW_HEAD_SHIFT)      \
                           "pkhbt r4, r4, r6, lsl #16\n"                                                               \
                           "pkhbt r5, r5, r7, lsl #16\n"                                                               \
                           "pkhbt r8, r8, r10, lsl #16\n"                                                              \
                           "pkhbt r9, r9, r11, lsl #16\n"                                                              \
                           "usat16 r4, #8, r4\n"                                                                       \
                           "usat16 r5, #8, r5\n"                                                                       \
                           "usat16 r8, #8, r8\n"                                                                       \
                           "usat16 r9, #8, r9\n"                                                                       \
                           "orr r4, r4, r5, lsl #8\n"                                                                  \
                           "orr r8, r8, r9, lsl #8\n"                                                                  \
                           "uqadd8 r4, r4, lr\n"                                                                       \
                           "uqadd8 r8, r8, lr\n"                                                                       \
                           "eor r4, r4, #0x80808080\n"                                                                 \
                           "eor r8, r8, #0x80808080\n"                                                                 \
                           "ldrd r6, r7, [sp, #16]\n"                                                                  \
                           "str r8, [r0, r6]\n"                                                                        \
                           "str r4, [r0], #" #step "\n"                                                                \
                           "cmp r1, r7\n"                                                                              \
                           "bne.w 2b\n"                                                                                \
                           "ldrd r2, r3, [sp, #36]\n"                                                                  \
                           "cmp r2, r3\n"                                                                              \
                           "bne.w 1b\n")

HTPW_HEAD(htpw_dsp_synth_head_4, 4)   /* row-major */
HTPW_HEAD(htpw_dsp_synth_head_16, 16) /* the cache layout of int8 */

/* The fast path is exact for this layer, whose x is scaled by 2^scale; see the top of the file. */
static int htpw_dsp_synth_fits(const struct htpw_synth_layer *layer, int32_t scale, int is_head) {
    const uint32_t x_max = scale == HTPW_DSP_CODE_SCALE ? 128u : 127u;
    const uint32_t most = (uint32_t)layer->cols * x_max * 128u + layer->bias_max; /* |v| */
    const int32_t right = -layer->shift;
    const uint32_t scaled = (uint32_t)((uint64_t)most * (uint32_t)layer->multiplier >> 31) + 1u; /* |h| */
    if (!layer->is_packed || layer->cols > HTPW_DSP_COLS || right < 2 || most >= UINT32_C(1) << (30 - scale) ||
        (scaled >> right) >= 32000u) {
        return 0;
    }
    return is_head ? layer->biases == NULL && layer->multiplier >= (INT32_C(1) << 30) && layer->act_min >= -127 &&
                         (right <= 12 || most < UINT32_C(1) << (32 - right))
                   : layer->rows <= HTPW_DSP_COLS && layer->act_min == 0 && layer->act_max == 127;
}

/* 8 codes of 4 bits from code `first` on, those behind the end 0. */
HTPW_DSP_INLINE uint32_t htpw_dsp_nibbles(const struct htpw_synth_job *job, uint32_t first) {
    const uint8_t *p = job->codes + first / 2u;
    uint32_t word = 0;
    if (job->codes_end - p >= 5) { /* a word and the nibble behind it */
        word = htpw_dsp_load((const int8_t *)p);
    } else {
        for (uint32_t i = 0; i < 4u && p + i < job->codes_end; i++) {
            word |= (uint32_t)p[i] << (8u * i);
        }
    }
    return first % 2u == 0 ? word : word >> 4; /* with an odd dz, which is 7 at most */
}

HTPW_DSP_INLINE uint32_t htpw_sxtb16(uint32_t x) {
    uint32_t r;
    __asm__("sxtb16 %0, %1" : "=r"(r) : "r"(x));
    return r;
}

HTPW_DSP_INLINE uint32_t htpw_sxtb16_ror8(uint32_t x) {
    uint32_t r;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(r) : "r"(x));
    return r;
}

/* 8 codes, scaled by 16, to a record: those beyond its end lie where the next record will, or in the words behind the last.
 * A column beyond dz meets a weight of 0. */
HTPW_DSP_INLINE void htpw_dsp_codes8(uint32_t word, uint32_t *first, uint32_t *others) {
    const uint32_t even = (word << 4) & UINT32_C(0xF0F0F0F0), odd = word & UINT32_C(0xF0F0F0F0);
    const uint32_t e04 = htpw_sxtb16(even), e26 = htpw_sxtb16_ror8(even);
    const uint32_t o15 = htpw_sxtb16(odd), o37 = htpw_sxtb16_ror8(odd);
    first[0] = htpw_pkhbt(e04, o15);
    others[0] = htpw_pkhbt(e26, o37);
    others[2] = htpw_pkhtb(e04, o15);
    others[4] = htpw_pkhtb(e26, o37);
}

/* Codes of up to 16 columns and any width. */
static void htpw_dsp_codes_any(const struct htpw_synth_job *job, uint32_t tile, uint32_t *record, uint32_t slots) {
    int8_t code[HTPW_DSP_COLS] = {0};
    htpw_values_read(job->codes, tile * job->dz, job->dz, job->code_bits, code);
    for (uint32_t i = 0; i < slots; i++) {
        const uint32_t at = i == 0 ? 0u : HTPW_DSP_SLOTS - slots + i;
        record[2u * at] = (uint16_t)(code[2u * i] * 16) | (uint32_t)(uint16_t)(code[2u * i + 1u] * 16) << 16;
    }
}

/* Tiles a and b of 8 codes, all of which are there. */
HTPW_DSP_INLINE void htpw_dsp_codes_pair(uint32_t a, uint32_t b, uint32_t *record, uint32_t *others) {
    htpw_dsp_codes8(a, record, others);
    htpw_dsp_codes8(b, record + 1, others + 1);
}

static void htpw_dsp_synth_codes(const struct htpw_synth_job *job, uint32_t tile, uint32_t tiles, uint32_t *record) {
    const uint32_t slots = (job->dz + 1u) / 2u, last = tile + tiles - 1u;
    uint32_t done = 0;
    if (job->code_bits == 4 && job->dz == 8) { /* the usual width, a word per tile */
        const int8_t *p = (const int8_t *)job->codes + 4u * tile;
        for (; done + 2u <= tiles; done += 2u, tile += 2u, p += 8, record += HTPW_DSP_RECORD) {
            htpw_dsp_codes_pair(htpw_dsp_load(p), htpw_dsp_load(p + 4), record, record + 10);
        }
    }
    for (; done < tiles; done += 2u, tile += 2u, record += HTPW_DSP_RECORD) {
        const uint32_t b = tile < last ? tile + 1u : tile; /* the last one stands in for its missing fellow */
        if (job->code_bits == 4 && job->dz <= 8) {
            uint32_t *others = record + 2u * (HTPW_DSP_SLOTS + 1u - slots);
            htpw_dsp_codes_pair(htpw_dsp_nibbles(job, tile * job->dz), htpw_dsp_nibbles(job, b * job->dz), record, others);
        } else {
            htpw_dsp_codes_any(job, tile, record, slots);
            htpw_dsp_codes_any(job, b, record + 1, slots);
        }
    }
}

/* Whole rows from row o on, of a multiple of 4 columns, into the layout of int16, four at a time, for htpw_layout_put. */
void htpw_dsp_put_rows(uint32_t o, uint32_t in_c, uint32_t rows, const int8_t *w, void *packed) {
    for (; rows > 0; rows--, o++) {
        int8_t *to = (int8_t *)packed + 8u * in_c * (o / 4u) + 4u * (o % 4u);
        for (const int8_t *const end = w + in_c; w != end; w += 4, to += 32) {
            const uint32_t four = htpw_dsp_load(w), even = htpw_sxtb16(four), odd = htpw_sxtb16_ror8(four);
            htpw_dsp_store(to, htpw_pkhbt(even, odd));
            htpw_dsp_store(to + 16, htpw_pkhtb(even, odd));
        }
    }
}

/* Once per kernel: whether it can be done, and the scaled biases of hidden layers, each four twice. */
static int htpw_dsp_synth_start(const struct htpw_synth_job *job, int32_t *bias) {
    if (job->layers < 2) {
        return 0;
    }
    for (uint32_t i = 0; i < job->layers; i++) {
        const struct htpw_synth_layer *layer = &job->layer[i];
        const int32_t scale = i == 0 ? HTPW_DSP_CODE_SCALE : 1;
        if (!htpw_dsp_synth_fits(layer, scale, i == job->layers - 1u)) {
            return 0;
        }
        for (int32_t o = 0; i < job->layers - 1u && o < HTPW_DSP_COLS; o += 4, bias += 8) {
            for (int32_t k = 0; k < 4; k++) {
                const int32_t at = o + k, is_there = layer->biases != NULL && at < layer->rows;
                bias[k] = bias[k + 4] = is_there ? (int32_t)((uint32_t)layer->biases[at] << scale) : 0;
            }
        }
    }
    return 1;
}

int htpw_dsp_synth_run(struct htpw_synth_job *job, uint32_t tile, uint32_t tiles, int8_t **y, uint32_t step) {
    const struct htpw_synth_layer *layer = job->layer;
    const uint32_t pairs = (tiles + 1u) / 2u, words = pairs * HTPW_DSP_RECORD;
    const int32_t *bias = (const int32_t *)job->scratch;
    uint32_t *x = (uint32_t *)job->scratch + HTPW_GENERATOR_LAYERS_MAX * 2 * HTPW_DSP_COLS;
    uint32_t *next = x + words + HTPW_DSP_SLACK;
    struct htpw_dsp_synth s;
    if (job->state == 0) {
        job->state = htpw_dsp_synth_start(job, (int32_t *)job->scratch) ? 1 : -1;
    }
    if (job->state < 0 || (step != 4 && step != 16)) {
        return 0;
    }
    htpw_dsp_synth_codes(job, tile, tiles, x);
    for (uint32_t i = 0;; i++, layer++) {
        const uint32_t groups = ((uint32_t)layer->rows + 3u) / 4u, scale = i == 0 ? HTPW_DSP_CODE_SCALE : 1u;
        s.slots = ((uint32_t)layer->cols + 1u) / 2u;
        s.w = layer->weights;
        s.w_end = (const uint32_t *)layer->weights + 4u * groups * s.slots;
        s.x = x;
        if (i == job->layers - 1u) {
            break;
        }
        for (uint32_t k = 0; i > 0 && k < words; k++) {
            x[k] *= 2u; /* of halves 0 .. 127 */
        }
        s.multiplier = layer->multiplier >> (scale - 1u);
        s.power = (int32_t)(UINT32_C(1) << (32 + layer->shift));
        s.tail = 8u * (HTPW_DSP_SLOTS - ((uint32_t)layer->rows + 1u) / 2u);
        s.bias = bias + i * 2 * HTPW_DSP_COLS;
        s.y = next;
        s.y_end = next + words;
        htpw_dsp_synth_hidden(&s);
        uint32_t *const old = x;
        x = next;
        next = old;
    }
    s.multiplier = (int32_t)((uint32_t)layer->multiplier * 2u);
    s.power = (int32_t)((UINT32_C(1) << (32 + layer->shift)) + 1u);
    s.offset = 127;
    s.ones = UINT32_C(0x01010101);
    s.y = y;
    s.y_end = y + 2u * pairs;
    if (tiles % 2u != 0) {
        y[tiles] = y[tiles - 1u];
    }
    (step == 4 ? htpw_dsp_synth_head_4 : htpw_dsp_synth_head_16)(&s);
    for (uint32_t t = 0; (layer->act_min > -127 || layer->act_max < 127) && t < tiles; t++) {
        const uint32_t low = (uint8_t)layer->act_min * UINT32_C(0x01010101), high = (uint8_t)layer->act_max * UINT32_C(0x01010101);
        int8_t *p = y[t];
        for (int32_t o = 0; o < layer->rows; o += 4, p += step) {
            htpw_dsp_store(p, htpw_min4(htpw_max4(htpw_dsp_load(p), low), high));
        }
    }
    return 1;
}

#endif
