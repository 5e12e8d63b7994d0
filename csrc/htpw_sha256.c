/* SHA-256, FIPS 180-4: binds code packs and signatures to an image. Small rather than fast: it runs once per update. */
#include "htpw_internal.h"

static const uint32_t htpw_sha_k[64] = {
    0x428a2f98u, 0x71374491u, 0xb5c0fbcfu, 0xe9b5dba5u, 0x3956c25bu, 0x59f111f1u, 0x923f82a4u, 0xab1c5ed5u,
    0xd807aa98u, 0x12835b01u, 0x243185beu, 0x550c7dc3u, 0x72be5d74u, 0x80deb1feu, 0x9bdc06a7u, 0xc19bf174u,
    0xe49b69c1u, 0xefbe4786u, 0x0fc19dc6u, 0x240ca1ccu, 0x2de92c6fu, 0x4a7484aau, 0x5cb0a9dcu, 0x76f988dau,
    0x983e5152u, 0xa831c66du, 0xb00327c8u, 0xbf597fc7u, 0xc6e00bf3u, 0xd5a79147u, 0x06ca6351u, 0x14292967u,
    0x27b70a85u, 0x2e1b2138u, 0x4d2c6dfcu, 0x53380d13u, 0x650a7354u, 0x766a0abbu, 0x81c2c92eu, 0x92722c85u,
    0xa2bfe8a1u, 0xa81a664bu, 0xc24b8b70u, 0xc76c51a3u, 0xd192e819u, 0xd6990624u, 0xf40e3585u, 0x106aa070u,
    0x19a4c116u, 0x1e376c08u, 0x2748774cu, 0x34b0bcb5u, 0x391c0cb3u, 0x4ed8aa4au, 0x5b9cca4fu, 0x682e6ff3u,
    0x748f82eeu, 0x78a5636fu, 0x84c87814u, 0x8cc70208u, 0x90befffau, 0xa4506cebu, 0xbef9a3f7u, 0xc67178f2u};

static uint32_t htpw_rotr(uint32_t x, uint32_t n) { return x >> n | x << (32u - n); }

static void htpw_sha_block(uint32_t *h, const uint8_t *p) {
    uint32_t w[16], v[8];
    for (uint32_t i = 0; i < 16; i++, p += 4) {
        w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    }
    for (uint32_t i = 0; i < 8; i++) {
        v[i] = h[i];
    }
    for (uint32_t i = 0; i < 64; i++) {
        if (i >= 16) { /* the schedule in place, a window of 16 words */
            const uint32_t a = w[(i + 1u) % 16u], b = w[(i + 14u) % 16u];
            w[i % 16u] += (htpw_rotr(a, 7) ^ htpw_rotr(a, 18) ^ a >> 3) + w[(i + 9u) % 16u] +
                          (htpw_rotr(b, 17) ^ htpw_rotr(b, 19) ^ b >> 10);
        }
        const uint32_t t1 = v[7] + (htpw_rotr(v[4], 6) ^ htpw_rotr(v[4], 11) ^ htpw_rotr(v[4], 25)) +
                            ((v[4] & v[5]) ^ (~v[4] & v[6])) + htpw_sha_k[i] + w[i % 16u];
        const uint32_t t2 = (htpw_rotr(v[0], 2) ^ htpw_rotr(v[0], 13) ^ htpw_rotr(v[0], 22)) +
                            ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        for (uint32_t k = 7; k > 0; k--) {
            v[k] = v[k - 1u];
        }
        v[4] += t1;
        v[0] = t1 + t2;
    }
    for (uint32_t i = 0; i < 8; i++) {
        h[i] += v[i];
    }
}

void htpw_sha256(const void *data, size_t length, uint8_t *digest) {
    uint32_t h[8] = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au,
                     0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};
    const uint8_t *p = (const uint8_t *)data;
    uint8_t last[128];
    size_t left = length;
    for (; left >= 64; left -= 64, p += 64) {
        htpw_sha_block(h, p);
    }
    htpw_zero(last, sizeof last);
    for (size_t i = 0; i < left; i++) {
        last[i] = p[i];
    }
    last[left] = 0x80;
    const size_t end = left < 56 ? 64 : 128;
    const uint64_t bits = (uint64_t)length * 8u;
    for (uint32_t i = 0; i < 8; i++) {
        last[end - 1u - i] = (uint8_t)(bits >> (8u * i));
    }
    for (size_t at = 0; at < end; at += 64) {
        htpw_sha_block(h, last + at);
    }
    for (uint32_t i = 0; i < 32; i++) {
        digest[i] = (uint8_t)(h[i / 4u] >> (24u - 8u * (i % 4u)));
    }
}

int htpw_verify(const void *data, size_t length, const uint8_t *signature, size_t signature_bytes,
                htpw_verify_fn verify, void *user) {
    uint8_t digest[HTPW_SHA256_BYTES];
    if (data == NULL || signature == NULL || verify == NULL) {
        return HTPW_ERR_ARGUMENT;
    }
    htpw_sha256(data, length, digest);
    return verify(user, digest, signature, signature_bytes) == 0 ? HTPW_OK : HTPW_ERR_SIGNATURE;
}
