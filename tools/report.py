"""Write the report of a forgetting run (report.html) and a certificate for each of its requests.

Both go into the run's work_dir and need nothing but its files, of which no Python is executed; what
audit.json holds is in them if it is there. With --verify, nothing is written: a signed certificate
is checked. Signatures need the extra mmgslora[signing].
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import mmgslora  # noqa: F401  puts compat in place
from mmgslora.command import plain_ending
from mmgslora.records.finished_run import FinishedRun
from mmgslora.records.record import unfinished
from mmgslora.report.certificate import certificates_of, write_certificates
from mmgslora.report.page import write_report


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', nargs='?', help='folder of the run, with forgetting.json')
    parser.add_argument(
        '--config',
        help="execute this config of yours for requests and thresholds instead of the run's own",
    )
    parser.add_argument('--sign', metavar='KEYFILE', help='sign with this Ed25519 key (PEM)')
    parser.add_argument('--make-key', metavar='KEYFILE', help='make a key, and KEYFILE.pub')
    parser.add_argument('--verify', metavar='CERTIFICATE', help='check a signed certificate')
    parser.add_argument('--key', metavar='PUBKEY', help='with --verify: whose key it must be')
    args = parser.parse_args(arguments)
    wanted = [args.work_dir, args.make_key, args.verify]
    if sum(value is not None for value in wanted) != 1:
        parser.error('give one of WORK_DIR, --make-key KEYFILE and --verify CERTIFICATE')
    if args.key and not args.verify:
        parser.error('--key needs --verify CERTIFICATE; --sign KEYFILE signs')
    if (args.sign or args.config) and not args.work_dir:
        parser.error('--sign and --config need WORK_DIR')
    return args


def signed(run: FinishedRun) -> bool:
    """Whether a certificate that lies in the work_dir has a signature."""
    paths = (run.work_dir / 'certificates').glob('task_*.json')
    return any(b'"signature": {' in path.read_bytes() for path in paths)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    if args.make_key or args.verify or args.sign:
        from mmgslora.report import signing  # which needs an optional package
    if args.make_key:
        public = signing.make_key(Path(args.make_key))
        print(f'{args.make_key}: keep it to yourself. {public}: give it to those who verify.')
    elif args.verify:
        for line in signing.verify(Path(args.verify), Path(args.key) if args.key else None):
            print(line)
    else:
        key = signing.load_key(Path(args.sign)) if args.sign else None
        run = FinishedRun(args.work_dir, args.config)
        certificates = certificates_of(run)
        signed_before = signed(run)
        if key:
            certificates = [signing.sign(certificate, key) for certificate in certificates]
        for certificate, path in zip(certificates, write_certificates(run, certificates)):
            verdict = certificate['verdict']
            back = 'taken back since; ' if certificate['taken_back'] else ''
            print(f'{os.path.relpath(path)}: {back}{verdict["result"]}. {verdict["sentence"]}')
        if signed_before and not key:
            print('They replace signed certificates and are not signed; --sign KEYFILE signs them.')
        if unfinished(run.record):
            print(unfinished(run.record))
        print(os.path.relpath(write_report(run, certificates)))


if __name__ == '__main__':
    with plain_ending():
        main()
