/**
 * Reading pieces of files.
 *
 * @module
 */

import { readSync } from "node:fs";
import { fileErrorCause, WeightsError } from "./json.ts";

/** One read call moves at most this many bytes (Linux stops at 2 GiB - 4 KiB). */
const READ_BYTES = 1 << 30;

/** Fills `target` with the bytes of an open file from `position` on. Throws WeightsError where the file ends before. */
export function readAll({ path, fd }: { path: string; fd: number }, position: number, target: Uint8Array): void {
  for (let done = 0; done < target.byteLength;) {
    let count: number;
    try {
      count = readSync(fd, target, done, Math.min(READ_BYTES, target.byteLength - done), position + done);
    } catch (error) {
      throw new WeightsError(`${path}: cannot be read: ${fileErrorCause(error)}`);
    }
    if (count === 0) throw new WeightsError(`${path}: ended at byte ${position + done}: it was cut while it was open`);
    done += count;
  }
}
