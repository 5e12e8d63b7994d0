/* All that the library needs beside itself on a bare Cortex-M: the functions that a freestanding compiler may call for
 * struct copies, and the address at which an emulated call ends.
 *
 * memcpy and memset move words when they can. Not for speed: they are counted as instructions of the library, and a byte
 * loop would count several times what any vendor's libc takes.
 */
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-loop-distribute-patterns") /* or the loop in memset becomes a call of memset */
#endif

void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *to, int value, size_t n);
void htpw_target_return(void);

typedef uint32_t __attribute__((may_alias)) htpw_target_word;

void *memcpy(void *restrict to, const void *restrict from, size_t n) {
    uint8_t *t = (uint8_t *)to;
    const uint8_t *f = (const uint8_t *)from;
    if (((uintptr_t)t | (uintptr_t)f) % 4 == 0) {
        for (; n >= 4; n -= 4, t += 4, f += 4) {
            *(htpw_target_word *)(void *)t = *(const htpw_target_word *)(const void *)f;
        }
    }
    while (n-- != 0) {
        *t++ = *f++;
    }
    return to;
}

void *memmove(void *to, const void *from, size_t n) {
    uint8_t *t = (uint8_t *)to;
    const uint8_t *f = (const uint8_t *)from;
    if ((uintptr_t)t <= (uintptr_t)f) {
        return memcpy(to, from, n); /* which goes upwards, so overlap in this direction is harmless */
    }
    while (n-- != 0) {
        t[n] = f[n];
    }
    return to;
}

void *memset(void *to, int value, size_t n) {
    uint8_t *t = (uint8_t *)to;
    const uint32_t word = (uint8_t)value * UINT32_C(0x01010101);
    if ((uintptr_t)t % 4 == 0) {
        for (; n >= 4; n -= 4, t += 4) {
            *(htpw_target_word *)(void *)t = word;
        }
    }
    while (n-- != 0) {
        *t++ = (uint8_t)value;
    }
    return to;
}

/* The link register of every emulated call holds this address; emulation stops when it is reached. */
__attribute__((naked)) void htpw_target_return(void) { __asm__ volatile("b ."); }
