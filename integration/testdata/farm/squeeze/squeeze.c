// Prints to how many bytes zlib compresses its standard input.
#include <stdio.h>
#include <zlib.h>

int main(void) {
	static unsigned char in[1 << 16], out[1 << 16];
	z_stream z = {0};
	unsigned long total = 0;
	int end;
	if (deflateInit(&z, Z_BEST_COMPRESSION) != Z_OK) return 1;
	do {
		z.avail_in = fread(in, 1, sizeof in, stdin);
		z.next_in = in;
		end = feof(stdin) ? Z_FINISH : Z_NO_FLUSH;
		do {
			z.avail_out = sizeof out;
			z.next_out = out;
			if (deflate(&z, end) == Z_STREAM_ERROR) return 1;
			total += sizeof out - z.avail_out;
		} while (z.avail_out == 0);
	} while (end != Z_FINISH);
	deflateEnd(&z);
	printf("%lu\n", total);
	return 0;
}
