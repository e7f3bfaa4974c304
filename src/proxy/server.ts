/** The front door: Postgres clients on one port, each brought to the compute of its endpoint, which is woken if it sleeps. */
import {systemClock} from '#runtime/clock.ts';
import {makeSelfSignedCertificate} from '#runtime/certificate.ts';
import {joinPath, systemDisk} from '#runtime/disk.ts';
import {createLog} from '#runtime/log.ts';
import {listenSockets} from '#runtime/net.ts';
import {systemRandom} from '#runtime/random.ts';
import {readSecretFile} from '#runtime/secret-file.ts';
import {type TlsIdentity, loadTlsIdentity} from '#runtime/tls.ts';
import {WebServer} from '#runtime/web-server.ts';
import {TokenIssuer} from '#wire/auth.ts';
import {CancelRegistry} from '#proxy/cancel.ts';
import type {ProxyConfig} from '#proxy/config.ts';
import {ControlClient} from '#proxy/control-client.ts';
import {FailureThrottle, Openings, wrongCancelsMax, wrongPasswordsMax} from '#proxy/limits.ts';
import {messageBytesMax, startupBytesMax} from '#proxy/messages.ts';
import {Pools} from '#proxy/pooler/pooled-session.ts';
import {type SessionContext, serveClient, serveWebSocket} from '#proxy/session.ts';
import {answerSqlRequest} from '#proxy/sql-over-http.ts';
import {SqlPool} from '#proxy/sql-pool.ts';
import {Traffic} from '#proxy/traffic.ts';

/** What a WebSocket may send before it is authenticated: startup, password, frame heads. */
const webSocketBytesMax = startupBytesMax + messageBytesMax;

export async function runProxy(config: ProxyConfig): Promise<{port: number; stop(): Promise<void>}> {
  const log = createLog({component: 'proxy'});
  const clock = systemClock;
  const random = systemRandom;
  const identity = await loadIdentity(config);
  const context: SessionContext = {
    identity,
    domains: [...new Set([config.domain, ...identity.domains])],
    requireTls: config.requireTls ?? 'remote',
    control: new ControlClient({
      url: config.controlUrl,
      issuer: await TokenIssuer.load(config.keysDir, 'proxy', clock),
      clock,
    }),
    traffic: new Traffic(),
    cancels: new CancelRegistry(random, new FailureThrottle(clock, wrongCancelsMax)),
    pools: new Pools(clock),
    throttle: new FailureThrottle(clock, wrongPasswordsMax),
    mockSecret: random.bytes(32),
    clock,
    random,
    log,
    acceptHttp: (socket, first) => web.accept(socket, first),
  };
  const pool = new SqlPool(clock);
  const web = new WebServer({
    onRequest: (request) => answerSqlRequest(request, context, pool),
    onWebSocket: (stream, {url, headers, clientIp}, limit) =>
      void serveWebSocket(stream, webSocketHost(url, headers['host']), clientIp, context, limit(webSocketBytesMax)),
  });
  const openings = new Openings();
  const listener = await listenSockets({host: config.host, port: config.port}, (socket) => {
    const opened = openings.add(() => socket.destroy());
    socket.once('close', opened);
    void serveClient(socket, context, opened);
  });
  const report = (bytes: Record<string, number>): Promise<void> => context.control.reportTransfer(bytes);
  context.traffic.start(clock, log, report);
  log.info('serving', {host: config.host, port: listener.port, domains: context.domains.join(',')});
  return {
    port: listener.port,
    async stop() {
      await web.close();
      pool.closeAll();
      context.pools.closeAll();
      await listener.close();
      context.traffic.stop();
      await context.traffic.flush(log, report);
    },
  };
}

/** The host a WebSocket is for: `?address=HOST:PORT` where the client goes through a fixed address, else the Host header. */
function webSocketHost(url: string, host: string | undefined): string | undefined {
  const address = new URLSearchParams(url.split('?')[1] ?? '').get('address') ?? host;
  return address?.replace(/:\d+$/, '');
}

/** The operator's certificate, or one of our own from the first start. */
async function loadIdentity(config: ProxyConfig): Promise<TlsIdentity> {
  const certificateFile = config.certificateFile ?? joinPath(config.dataDir, 'certificate.pem');
  const privateKeyFile = config.privateKeyFile ?? joinPath(config.dataDir, 'certificate.key.pem');
  if (config.certificateFile === undefined && !systemDisk.exists(privateKeyFile)) {
    const domains = [...new Set([config.domain, 'localhost'])];
    await makeSelfSignedCertificate({disk: systemDisk, certificateFile, privateKeyFile, domains});
  }
  return loadTlsIdentity(systemDisk.readFile(certificateFile).toString('utf8'), readSecretFile(privateKeyFile));
}
