package job

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"time"
)

// certificates are those of one job's engine and its clients, signed by an authority that nobody has the key of.
type certificates struct {
	server *tls.Config
	client map[string]string // files as docker:dind makes them (docker-library/docker, dockerd-entrypoint.sh)
}

// certificateLife is how long they are good for: longer than any job. As with docker:dind, 825 days.
const certificateLife = 825 * 24 * time.Hour

// newCertificates makes certificates for an engine that is reached by names.
func newCertificates(names []string) (*certificates, error) {
	ca, err := issue(nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: "docker:dind CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	if err != nil {
		return nil, err
	}
	server, err := issue(ca, &x509.Certificate{
		Subject: pkix.Name{CommonName: "docker:dind server"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    append([]string{"localhost"}, names...), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	})
	if err != nil {
		return nil, err
	}
	client, err := issue(ca, &x509.Certificate{
		Subject: pkix.Name{CommonName: "docker:dind client"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, err
	}
	clients := x509.NewCertPool()
	clients.AddCert(ca.certificate)
	key, err := x509.MarshalPKCS8PrivateKey(client.key)
	if err != nil {
		return nil, err
	}
	return &certificates{
		server: &tls.Config{
			Certificates: []tls.Certificate{{Certificate: [][]byte{server.certificate.Raw}, PrivateKey: server.key}},
			ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: clients, MinVersion: tls.VersionTLS12,
			NextProtos: []string{"http/1.1"}, // connections are carried on as they are
		},
		client: map[string]string{
			"ca.pem": pemText("CERTIFICATE", ca.certificate.Raw), "cert.pem": pemText("CERTIFICATE", client.certificate.Raw),
			"key.pem": pemText("PRIVATE KEY", key),
		},
	}, nil
}

// issued is a certificate with its key.
type issued struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// issue makes a certificate of a template, signed by another one or, without, by itself.
func issue(by *issued, template *x509.Certificate) (*issued, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, err
	}
	template.NotBefore = time.Now().Add(-time.Minute)
	template.NotAfter = template.NotBefore.Add(certificateLife)
	if by == nil {
		by = &issued{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.certificate, key.Public(), by.key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	return &issued{certificate, key}, err
}

func pemText(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
