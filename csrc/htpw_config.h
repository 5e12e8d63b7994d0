/* htpw_config.h - what a build of the library leaves out.
 *
 * Everything is on unless HTPW_WITH_<NAME> is 0, by a compiler option (-DHTPW_WITH_ATTEND=0) or in a file that the option
 * -DHTPW_CONFIG='"my_config.h"' names. `pyhtpw export c` writes one that has what an image needs and nothing else. Names are those of
 * HTPW_OPERATORS, HTPW_STORED, HTPW_HEADS and HTPW_EXTRAS in htpw_internal.h.
 *
 * An image that needs what is left out is refused when it is opened, by an error that names it. HTPW_WITH(NAME) is a constant
 * expression, 0 or 1, so that code asks with `if` and tables with `?:`: compilers check what they then throw away. What nobody
 * calls (flash, code packs' slots, signatures, the self-test) needs no switch: link with --gc-sections.
 */
#ifndef HTPW_CONFIG_H
#define HTPW_CONFIG_H

#ifdef HTPW_CONFIG
#include HTPW_CONFIG
#endif

/* 1 unless HTPW_WITH_<name> is defined as 0: pasted to HTPW_SWITCH_, a 0 becomes two arguments in front of the others. */
#define HTPW_WITH(name) HTPW_WITH_IS(HTPW_WITH_##name)
#define HTPW_WITH_IS(value) HTPW_WITH_PASTED(value)
#define HTPW_WITH_PASTED(value) HTPW_THIRD(HTPW_SWITCH_##value, 1, 1, 0)
#define HTPW_THIRD(...) HTPW_THIRD_OF(__VA_ARGS__)
#define HTPW_THIRD_OF(a, b, c, ...) c
#define HTPW_SWITCH_0 0, 0, 0

/* For the smallest code: portable kernels with short loops instead of those of the CPU's backend, at a price in speed. */
#ifdef HTPW_CONFIG_SMALL
#define HTPW_SMALL 1
#else
#define HTPW_SMALL 0
#endif

/* For hosts: htpw_run_batch of htpw_internal.h. Without it the number of windows is the constant 1, and nothing is left of it. */
#ifdef HTPW_CONFIG_BATCH
#define HTPW_BATCH(windows) (windows)
#else
#define HTPW_BATCH(windows) ((void)(windows), 1u)
#endif

/* What is run once, or seldom, is made small where the rest is made fast. */
#if defined(__GNUC__) && !defined(__OPTIMIZE_SIZE__)
#define HTPW_COLD __attribute__((cold, noinline))
#else
#define HTPW_COLD
#endif

/* What several parts have in common. */
#define HTPW_ANY_PLAIN                                                                                                 \
    (HTPW_WITH(ADD) || HTPW_WITH(AVGPOOL) || HTPW_WITH(MAXPOOL) || HTPW_WITH(TABLE) || HTPW_WITH(MUL) ||               \
     HTPW_WITH(ATTEND))
#define HTPW_ANY_MATRIX (HTPW_WITH(CONV1X1) || HTPW_WITH(FC))
#define HTPW_ANY_CACHED_STORED (HTPW_WITH(STORED4) || HTPW_WITH(STORED2))
#define HTPW_ANY_TILES                                                                                                 \
    (HTPW_WITH(DENSE) || HTPW_WITH(FACTORISED) || HTPW_WITH(TILED) || HTPW_WITH(SEEDED) || HTPW_WITH(CODEBOOK))
#define HTPW_ANY_FUSED (HTPW_ANY_TILES && HTPW_WITH(FUSED) && !HTPW_SMALL)
#define HTPW_ANY_ROWS (HTPW_ANY_MATRIX && (HTPW_WITH(STORED8) || HTPW_WITH(LARGE))) /* conv1x1 by row-major weights */
#ifdef HTPW_CONFIG_CACHE_WIDE
#define HTPW_ANY_WIDE 1
#else /* kernels of int16, for synthesis: without it that runs in int8, in no more scratch as long as every matrix is copied there */
#define HTPW_ANY_WIDE (HTPW_WITH(FUSED) || HTPW_WITH(LARGE))
#endif
#define HTPW_ANY_BLOCKS (!HTPW_SMALL) /* a layout that is not row-major */
#define HTPW_ANY_PACKED (HTPW_ANY_TILES || HTPW_ANY_CACHED_STORED) /* by those in the cache */

/* For functions of which little is left when they are called with constants. */
#ifdef __GNUC__
#define HTPW_FOLDED inline __attribute__((always_inline))
#else
#define HTPW_FOLDED inline
#endif

/* A number of batches, rows or taps in a column, which 1-D networks have one of. */
#define HTPW_ROWS(n) (HTPW_WITH(PLANES) ? (n) : 1)

/* An entry of a backend's table, if a part needs it. */
#define HTPW_IF(part, function) ((part) ? (function) : NULL)

#endif
