/**
 * Paths of files that come with the package.
 *
 * @module
 */

import { fileURLToPath } from "node:url";

/** A file system path from a path or file URL. Throws where a URL is remote: the package's assets must be local. */
export function localPath(location: string | URL): string {
  if (typeof location === "string") return location;
  if (location.protocol === "file:") return fileURLToPath(location);
  throw new Error(
    `${location}: is not a local file; clone the repository for the embedded model, or give the path of a model folder ` +
      "(scripts/pull.ts downloads one)",
  );
}
