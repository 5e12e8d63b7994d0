/* htpw_bits.c - the packed fields of the image: least significant bit first, no alignment. */
#include "htpw_kernels.h"

uint32_t htpw_bits_unsigned(const uint8_t *stream, uint32_t index, uint32_t bits) {
    if (bits == 0) {
        return 0; /* takes no bytes */
    }
    const uint32_t within = (index & 7u) * bits; /* 8 values fill `bits` bytes, so no product of index can overflow */
    const uint8_t *p = stream + (size_t)(index >> 3) * bits + (within >> 3);
    uint32_t value = (uint32_t)*p >> (within & 7u);
    for (uint32_t have = 8u - (within & 7u); have < bits; have += 8u) {
        value |= (uint32_t)*++p << have;
    }
    return value & (UINT32_MAX >> (32u - bits));
}

int32_t htpw_bits_signed(const uint8_t *stream, uint32_t index, uint32_t bits) {
    const uint32_t sign = bits > 0 ? UINT32_C(1) << (bits - 1u) : 0u;
    return (int32_t)((htpw_bits_unsigned(stream, index, bits) ^ sign) - sign);
}

void htpw_bits_unpack_signed(const uint8_t *stream, uint32_t n, uint32_t bits, int32_t *y) {
    for (uint32_t i = 0; i < n; i++) {
        y[i] = htpw_bits_signed(stream, i, bits);
    }
}

void htpw_bits_unpack_unsigned(const uint8_t *stream, uint32_t n, uint32_t bits, uint32_t *y) {
    for (uint32_t i = 0; i < n; i++) {
        y[i] = htpw_bits_unsigned(stream, i, bits);
    }
}
