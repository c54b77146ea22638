/**
 * Reading pieces of files.
 *
 * @module
 */

import { closeSync, fstatSync, openSync, readSync } from "node:fs";
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

/**
 * What `read` makes of an open file, given its descriptor and size. The file stays open; where `read` throws it is closed.
 * Throws WeightsError for one that cannot be opened, and for a folder.
 */
export function openFile<T>(path: string, read: (fd: number, size: number) => T): T {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (error) {
    throw new WeightsError(`${path}: ${fileErrorCause(error)}`);
  }
  try {
    const stat = fstatSync(fd);
    if (stat.isDirectory()) throw new WeightsError(`${path}: is a folder, not a file`);
    return read(fd, stat.size);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}
