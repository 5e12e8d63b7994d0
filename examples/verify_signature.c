/* Opens an image only if its Ed25519 signature is right; the library computes the digest, libsodium checks the signature.
 *
 *     cmake -B build && cmake --build build
 *     cc -Icsrc examples/verify_signature.c build/libhtpw.a -lsodium -o verify_signature
 *     ./verify_signature model.htpw model.htpw.sig key.pub        (from: pyhtpw keygen, pyhtpw sign)
 */
#include "htpw.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>

/* htpw_verify_fn: `user` is the public key. */
static int verify(void *user, const uint8_t *digest, const uint8_t *signature, size_t signature_bytes) {
    return signature_bytes == crypto_sign_BYTES &&
                   crypto_sign_verify_detached(signature, digest, HTPW_SHA256_BYTES, (const uint8_t *)user) == 0
               ? 0
               : 1;
}

/* Reads a whole file; exits if it cannot. */
static uint8_t *load(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        perror(path);
        exit(2);
    }
    *bytes = (size_t)ftell(file);
    rewind(file);
    uint8_t *data = (uint8_t *)malloc(*bytes + 1); /* malloc aligns to more than the 4 bytes that an image needs */
    if (data == NULL || fread(data, 1, *bytes, file) != *bytes) {
        perror(path);
        exit(2);
    }
    fclose(file);
    return data;
}

int main(int argc, char **argv) {
    size_t image_bytes, signature_bytes, text_bytes, key_bytes;
    struct htpw_model model;
    if (argc != 4 || sodium_init() < 0) {
        fprintf(stderr, "usage: %s IMAGE SIGNATURE PUBLIC_KEY_FILE\n", argv[0]);
        return 2;
    }
    uint8_t *image = load(argv[1], &image_bytes);
    uint8_t *signature = load(argv[2], &signature_bytes);
    uint8_t *text = load(argv[3], &text_bytes); /* 64 hexadecimal digits and a line feed */
    uint8_t key[crypto_sign_PUBLICKEYBYTES];
    int error = HTPW_ERR_SIGNATURE;
    if (sodium_hex2bin(key, sizeof key, (const char *)text, text_bytes, "\n", &key_bytes, NULL) == 0 &&
        key_bytes == sizeof key) {
        error = htpw_verify(image, image_bytes, signature, signature_bytes, verify, key);
    }
    if (error == HTPW_OK) { /* only now is a byte of it interpreted */
        error = htpw_model_open(&model, image, image_bytes);
    }
    printf("%s\n", error == HTPW_OK ? "opened" : htpw_error_text(error));
    free(text);
    free(signature);
    free(image);
    return error == HTPW_OK ? 0 : 1;
}
