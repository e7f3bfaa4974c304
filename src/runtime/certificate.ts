/** A self-signed certificate for a first start, made by the openssl program. */
import type {Disk} from '#runtime/disk.ts';
import {dirname} from '#runtime/disk.ts';
import {runProcess} from '#runtime/process.ts';

/**
 * Writes an ECDSA P-256 certificate, valid for ten years, for `*.DOMAIN` and `DOMAIN` of every domain. Enough for sslmode=require and
 * channel binding; verify-full needs a certificate given by the operator. Rejects when openssl is missing or fails.
 */
export async function makeSelfSignedCertificate(options: {
  disk: Disk;
  certificateFile: string;
  privateKeyFile: string;
  domains: readonly string[];
}): Promise<void> {
  const {disk, certificateFile, privateKeyFile, domains} = options;
  disk.makeDirectory(dirname(certificateFile));
  const names = domains.flatMap((d) => [`DNS:${d}`, `DNS:*.${d}`]).join(',');
  const temporary = `${privateKeyFile}.new`;
  const args = [
    'req',
    '-x509',
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:prime256v1',
    '-sha256',
    '-days',
    '3650',
    '-nodes',
  ];
  const {code, stderr} = await runProcess({
    command: 'openssl',
    args: [
      ...args,
      '-subj',
      `/CN=*.${domains[0]}`,
      '-addext',
      `subjectAltName=${names}`,
      '-keyout',
      temporary,
      '-out',
      certificateFile,
    ],
  });
  if (code !== 0)
    throw new Error(`openssl could not make a certificate for ${domains.join(', ')}: ${stderr.slice(-500)}`);
  const key = disk.readFile(temporary);
  disk.remove(temporary);
  disk.writeFileAtomic(privateKeyFile, key, 0o600);
}
