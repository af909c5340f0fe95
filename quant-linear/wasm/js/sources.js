// Files as sources: a name, a size, and bytes by position.

/** Bytes in memory. */
export function bytesSource(name, bytes) {
  if (!(bytes instanceof Uint8Array)) throw new Error("bytes are no Uint8Array; give one");
  return {
    name,
    size: bytes.length,
    read: (position, length) => bytes.subarray(position, position + length),
  };
}

/** A Blob or File, read by slices: in a worker, where reading may wait. */
export function blobSource(name, blob) {
  if (typeof FileReaderSync === "undefined") {
    throw new Error("a blob is read by slices in a worker; call blobSource there");
  }
  const reader = new FileReaderSync();
  return {
    name,
    size: blob.size,
    read: (position, length) =>
      new Uint8Array(reader.readAsArrayBuffer(blob.slice(position, position + length))),
  };
}
