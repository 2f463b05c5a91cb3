/* A strict double of NeuronRuntimeV2 (RuntimeV2.h of the Neuron SDK), compiled by the tests.

   A "network" is a text file: "NEURON inputs outputs elements output_bytes padded_row mode". Every output is twice the sum
   of the inputs, element by element. Modes: 0 right; 1 latches its inputs at the first run; 2 fails to run; 3 takes two
   seconds to load. A descriptor whose fd is not -1, or whose length or pointer is wrong, is refused: error 4, bad data. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { void *buffer; size_t length; int fd; int offset; uint64_t r2, r3; } IOBuffer;
typedef struct { IOBuffer *inputs; IOBuffer *outputs; } SyncInferenceRequest;
typedef struct { int in, out, elements, out_bytes, row, mode, runs; float *held; void *seen; } Runtime;

int NeuronRuntimeV2_create(const char *path, size_t threads, void **runtime, size_t backlog) {
    if (!path || !runtime || threads != 1 || backlog < 1) return 3;
    FILE *file = fopen(path, "r");
    if (!file) return 4;
    Runtime *made = calloc(1, sizeof(Runtime));
    int count = fscanf(file, "NEURON %d %d %d %d %d %d", &made->in, &made->out, &made->elements, &made->out_bytes, &made->row, &made->mode);
    fclose(file);
    if (count != 6) { free(made); return 4; }
    if (made->mode == 3) sleep(2);
    made->held = calloc((size_t)made->elements, sizeof(float));
    *runtime = made;
    return 0;
}
int NeuronRuntimeV2_getInputNumber(void *r, size_t *n) { *n = (size_t)((Runtime *)r)->in; return 0; }
int NeuronRuntimeV2_getOutputNumber(void *r, size_t *n) { *n = (size_t)((Runtime *)r)->out; return 0; }
int NeuronRuntimeV2_getInputSize(void *r, uint64_t h, size_t *n) {
    Runtime *x = r;
    if (h >= (uint64_t)x->in) return 4;
    *n = 4u * (size_t)x->elements; return 0;
}
int NeuronRuntimeV2_getInputPaddedSize(void *r, uint64_t h, size_t *n) { return NeuronRuntimeV2_getInputSize(r, h, n); }
int NeuronRuntimeV2_getOutputSize(void *r, uint64_t h, size_t *n) {
    Runtime *x = r;
    if (h >= (uint64_t)x->out) return 4;
    *n = (size_t)x->out_bytes * (size_t)x->elements; return 0;
}
int NeuronRuntimeV2_getOutputPaddedSize(void *r, uint64_t h, size_t *n) {
    Runtime *x = r;
    if (h >= (uint64_t)x->out) return 4;
    *n = (size_t)x->out_bytes * (size_t)x->row; return 0;
}
static uint16_t half(float value) {
    uint32_t bits; memcpy(&bits, &value, 4);
    uint32_t sign = (bits >> 16) & 0x8000, mantissa = bits & 0x7fffff; int exponent = (int)((bits >> 23) & 0xff) - 112;
    if (exponent <= 0) return (uint16_t)sign;
    if (exponent >= 31) return (uint16_t)(sign | 0x7c00);
    return (uint16_t)(sign | ((uint32_t)exponent << 10) | (mantissa >> 13));
}
int NeuronRuntimeV2_run(void *r, SyncInferenceRequest request) {
    Runtime *x = r;
    if (x->mode == 2) return 6;
    if (x->seen && x->seen != (void *)request.inputs) return 5; /* other descriptors than the first time */
    x->seen = (void *)request.inputs;
    for (int i = 0; i < x->in; i++)
        if (request.inputs[i].fd != -1 || request.inputs[i].length != 4u * (size_t)x->elements || !request.inputs[i].buffer) return 4;
    if (x->mode != 1 || x->runs == 0)
        for (int e = 0; e < x->elements; e++) {
            x->held[e] = 0;
            for (int i = 0; i < x->in; i++) x->held[e] += 2 * ((float *)request.inputs[i].buffer)[e];
        }
    x->runs++;
    for (int o = 0; o < x->out; o++) {
        if (request.outputs[o].fd != -1 || request.outputs[o].length < (size_t)x->out_bytes * (size_t)x->elements) return 4;
        for (int e = 0; e < x->elements; e++) {
            if (x->out_bytes == 4) ((float *)request.outputs[o].buffer)[e] = x->held[e];
            else ((uint16_t *)request.outputs[o].buffer)[e] = half(x->held[e]);
        }
    }
    return 0;
}
void NeuronRuntimeV2_release(void *r) { free(((Runtime *)r)->held); free(r); }
