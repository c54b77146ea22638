/**
 * A lock between processes: a file that holds the number of the process that has it.
 *
 * @module
 */

import { closeSync, openSync, readFileSync, renameSync, rmSync, writeSync } from "node:fs";
import process from "node:process";
import { fileErrorCause, WeightsError } from "../weights/json.ts";

/**
 * Runs `work` while no other process holds the lock file `path`. Throws {@link WeightsError} where one does. A lock whose
 * process has ended is taken over.
 */
export async function exclusively<T>(path: string, work: () => Promise<T>): Promise<T> {
  if (!take(path)) {
    const holder = Number(readLock(path));
    if (isAlive(holder)) {
      throw new WeightsError(`${path}: process ${holder} is writing here; wait for it to end, or delete the file`);
    }
    // Renamed before it is deleted: of two processes that find a dead lock, one succeeds.
    const dead = `${path}.${process.pid}`;
    try {
      renameSync(path, dead);
      rmSync(dead, { force: true });
    } catch {
      // The other one was faster.
    }
    if (!take(path)) throw new WeightsError(`${path}: another process is writing here; wait for it to end`);
  }
  try {
    return await work();
  } finally {
    rmSync(path, { force: true });
  }
}

function take(path: string): boolean {
  let fd: number;
  try {
    fd = openSync(path, "wx");
  } catch (error) {
    if ((error as { code?: string }).code === "EEXIST") return false;
    throw new WeightsError(`${path}: cannot be made: ${fileErrorCause(error)}`);
  }
  writeSync(fd, String(process.pid));
  closeSync(fd);
  return true;
}

function readLock(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

/** Signal 0 asks whether a process is there. An empty lock is one that is just being written. */
function isAlive(pid: number): boolean {
  if (!Number.isInteger(pid)) return false;
  if (pid === 0) return true;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as { code?: string }).code === "EPERM";
  }
}
