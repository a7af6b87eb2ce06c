#include "agent.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool fail(struct failure *f, int error, const char *code, const char *format, ...) {
  va_list list;
  va_start(list, format);
  int size = vsnprintf(f->text, sizeof f->text, format, list);
  va_end(list);
  if (error != 0 && size >= 0 && (size_t)size < sizeof f->text)
    snprintf(f->text + size, sizeof f->text - (size_t)size, ": %s", strerror(error));
  f->error = error;
  f->code = code;
  return false;
}

const uint8_t *read_fixed(struct reader *r, size_t size) {
  if (r->bad || r->left < size) {
    r->bad = true;
    return NULL;
  }
  const uint8_t *at = r->at;
  r->at += size;
  r->left -= size;
  return at;
}

uint32_t read_u32(struct reader *r) {
  uint32_t value = 0;
  const uint8_t *at = read_fixed(r, sizeof value);
  if (at != NULL) memcpy(&value, at, sizeof value);
  return value;
}

uint64_t read_u64(struct reader *r) {
  uint64_t value = 0;
  const uint8_t *at = read_fixed(r, sizeof value);
  if (at != NULL) memcpy(&value, at, sizeof value);
  return value;
}

struct span read_bytes(struct reader *r) {
  struct span span = {.size = read_u32(r)};
  span.data = read_fixed(r, span.size);
  if (span.data == NULL) span.size = 0;
  return span;
}

void read_string(struct reader *r, char *out, size_t size) {
  struct span span = read_bytes(r);
  out[0] = '\0';
  if (r->bad) return;
  if (span.size >= size || memchr(span.data, 0, span.size) != NULL) {
    r->bad = true;
    return;
  }
  memcpy(out, span.data, span.size);
  out[span.size] = '\0';
}

void write_u32(struct writer *w, uint32_t value) {
  if (sizeof w->data - w->size < sizeof value) return;
  memcpy(w->data + w->size, &value, sizeof value);
  w->size += sizeof value;
}

void write_u64(struct writer *w, uint64_t value) {
  if (sizeof w->data - w->size < sizeof value) return;
  memcpy(w->data + w->size, &value, sizeof value);
  w->size += sizeof value;
}

void write_bytes(struct writer *w, const void *data, size_t size) {
  if (sizeof w->data - w->size < sizeof(uint32_t) + size) return;
  write_u32(w, (uint32_t)size);
  memcpy(w->data + w->size, data, size);
  w->size += size;
}

void write_string(struct writer *w, const char *text) {
  size_t room = sizeof w->data - w->size;
  size_t size = strlen(text);
  if (room < sizeof(uint32_t)) return;
  write_bytes(w, text, size > room - sizeof(uint32_t) ? room - sizeof(uint32_t) : size);
}
