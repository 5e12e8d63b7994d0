/* Runs one window of zeros through an image: run_image model.htpw
 *
 * On a device the image is a const array in flash and the buffers are static arrays of the sizes that htpw_plan_memory
 * (or `pyhtpw bill --json`) reports; only this host example has files and a heap.
 */
#include <stdio.h>
#include <stdlib.h>

#include "htpw.h"

static int fail(const char *what, const char *why) {
    fprintf(stderr, "run_image: %s: %s\n", what, why);
    return 2;
}

int main(int argc, char **argv) {
    static struct htpw_model model;
    static struct htpw_context context;
    struct htpw_plan plan;
    if (argc != 2) {
        return fail("usage", "run_image model.htpw");
    }
    FILE *file = fopen(argv[1], "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        return fail(argv[1], "cannot open");
    }
    const long size = ftell(file);
    rewind(file);
    void *image = malloc(size > 0 ? (size_t)size : 1);
    if (image == NULL || size < 0 || fread(image, 1, (size_t)size, file) != (size_t)size) {
        return fail(argv[1], "cannot read");
    }
    fclose(file);

    int error = htpw_model_open(&model, image, (size_t)size);
    if (error == 0) {
        error = htpw_plan_memory(&model, HTPW_BACKEND_BEST, &plan);
    }
    if (error != 0) {
        return fail(argv[1], htpw_error_text(error));
    }
    void *arena = malloc(plan.arena_bytes), *cache = malloc(plan.cache_bytes + 1);
    int8_t *window = calloc(plan.input_bytes, 1), *logits = malloc(plan.output_bytes);
    if (arena == NULL || cache == NULL || window == NULL || logits == NULL) {
        return fail("memory", "not enough");
    }
    error = htpw_bind(&context, &model, HTPW_BACKEND_BEST, arena, plan.arena_bytes, cache, plan.cache_bytes, HTPW_BOOT);
    if (error == 0) {
        error = htpw_run(&context, window, plan.input_bytes, logits, plan.output_bytes);
    }
    if (error != 0) {
        return fail(argv[1], htpw_error_text(error));
    }
    printf("backend %s, arena %u, cache %u bytes; logits", htpw_backend_name(HTPW_BACKEND_BEST),
           (unsigned)plan.arena_bytes, (unsigned)plan.cache_bytes);
    for (uint32_t i = 0; i < plan.output_bytes; i++) {
        printf(" %d", logits[i]);
    }
    printf("\n");
    free(image);
    free(arena);
    free(cache);
    free(window);
    free(logits);
    return 0;
}
