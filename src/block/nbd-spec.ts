/** Numbers of NBD's transmission phase with simple replies (the protocol's doc/proto.md, "Transmission phase"). */

/** Magic, flags, command, cookie, offset, length. */
export const REQUEST_BYTES = 28;
export const REQUEST_MAGIC = 0x25609513;
/** Magic, error, cookie; the data of a read follows. */
export const REPLY_BYTES = 16;
export const REPLY_MAGIC = 0x67446698;
export const CMD = { read: 0, write: 1, disconnect: 2, flush: 3, trim: 4, writeZeroes: 6 } as const;
/** Write zeroes: the space stays allocated. */
export const CMD_FLAG_NO_HOLE = 2;
/** The server is going down: as good as gone. */
export const ESHUTDOWN = 108;
