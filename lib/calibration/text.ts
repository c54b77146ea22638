/**
 * Text to passages of tokens, for calibration and evaluation.
 *
 * @module
 */

import { readFileSync } from "node:fs";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { fileErrorCause } from "../weights/json.ts";

/** Separates documents in a text file (ASCII record separator). */
export const DOCUMENT_SEPARATOR: string = "\u001e";

/** Reads a UTF-8 text file. Throws an Error naming the file where it is missing, unreadable or not UTF-8. */
export function readText(path: string): string {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (cause) {
    throw new Error(`${path}: cannot be read (${fileErrorCause(cause)})`, { cause });
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new Error(`${path}: is not UTF-8 text`, { cause });
  }
}

/**
 * Cuts a text into passages of `length` tokens: documents are split at U+001E, each encoded with its begin token, the ids
 * joined, and the first `count` passages taken. Throws RangeError where the text is too short.
 */
export function textPassages(tokenizer: Tokenizer, text: string, length: number, count: number): Int32Array[] {
  const ids: number[] = [];
  for (const document of text.split(DOCUMENT_SEPARATOR)) {
    for (const id of tokenizer.encode(document)) ids.push(id);
    if (ids.length >= length * count) break;
  }
  if (ids.length < length * count) {
    throw new RangeError(
      `the text has ${ids.length} tokens; ${count} windows of ${length} need ${
        length * count
      }: ask for fewer or shorter windows`,
    );
  }
  return Array.from({ length: count }, (_, i) => Int32Array.from(ids.slice(i * length, (i + 1) * length)));
}
